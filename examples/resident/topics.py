"""A resident worker that takes batches: which of its texts does each new text resemble most?

Builds a TF-IDF index once for each process, from the descriptions of the data sets that scikit-learn ships, and compares a
whole batch with it in one matrix product, as a GPU would like it. See gamdok.toml beside this file.
"""

import pathlib
import sys
from typing import List

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "python"))

from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.feature_extraction.text import TfidfVectorizer

from gamdok_worker import Item, serve_batches

TOPICS = {"cancer": load_breast_cancer, "diabetes": load_diabetes, "digits": load_digits, "iris": load_iris, "wine": load_wine}

vectorizer = TfidfVectorizer(stop_words="english")
names = list(TOPICS)
index = vectorizer.fit_transform([load().DESCR for load in TOPICS.values()])


def handle(items: List[Item]) -> list:
    texts = [item.path.read_text(errors="replace") for item in items]
    scores = (vectorizer.transform(texts) @ index.T).toarray()
    answers: list = []
    for text, row in zip(texts, scores):
        if row.max() == 0:
            # An exception as a result fails its item alone.
            answers.append(ValueError(f"nothing known in {text[:40]!r}"))
        else:
            answers.append({"topic": names[int(row.argmax())], "score": round(float(row.max()), 3), "batch": len(items)})
    return answers


if __name__ == "__main__":
    serve_batches(handle)
