"""A resident worker with a real model: which digit is it?

Fits a support vector machine to the 1,797 handwritten digits that scikit-learn ships (nothing is downloaded), once for
each process, and then classifies 8 x 8 pictures (plain PGM, 16 grey levels). See gamdok.toml beside this file.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "python"))

from sklearn.datasets import load_digits
from sklearn.svm import SVC

from gamdok_worker import Item, Refused, serve


def read_pgm(path: pathlib.Path) -> list:
    """The 64 grey values of an 8 x 8 picture, 0 to 16, row by row."""
    text = path.read_text(errors="replace")
    words = [word for line in text.splitlines() for word in line.split("#")[0].split()]
    if words[:4] != ["P2", "8", "8", "16"] or len(words) != 68 or not all(word.isdigit() for word in words[4:]):
        raise Refused("not a plain PGM of 8 x 8 pixels and 16 grey levels")
    return [int(word) for word in words[4:]]


digits = load_digits()
# The last hundred are left out: the examples in digits/ are of them.
model = SVC(gamma=0.001).fit(digits.data[:-100], digits.target[:-100])


def handle(item: Item) -> dict:
    digit = int(model.predict([read_pgm(item.path)])[0])
    item.count(f"digit-{digit}")
    (item.out / "digit.json").write_text(json.dumps({"digit": digit}) + "\n")
    return {"digit": digit}


if __name__ == "__main__":
    serve(handle)
