// What the page asks a person, and what it tells in passing.

import { $, goBack, h, place } from "./dom.js";

/** Asks before something hurts; true when it was meant. */
export function confirm(what, means, word) {
  return new Promise((decide) => {
    const dialog = $("ask");
    const form = h(
      "form",
      { method: "dialog" },
      h("h2", { id: "ask-what" }, what),
      h("p", {}, means),
      h(
        "div",
        { class: "actions" },
        h("button", { value: "no", autofocus: true }, "Leave it"),
        h("button", { value: "yes", class: "danger" }, word),
      ),
    );
    open(dialog, form, () => decide(dialog.returnValue === "yes"));
  });
}

/** Asks for the token. */
export function token(wrong) {
  return new Promise((decide) => {
    const dialog = $("ask");
    const input = h("input", { type: "password", id: "token", autocomplete: "off", autofocus: true, size: 36 });
    const form = h(
      "form",
      { method: "dialog" },
      h("h2", { id: "ask-what" }, wrong ? "That token isn't the one" : "A token is needed"),
      h("p", {}, "It is the text of the file that `token_file` in [api] of gamdok.toml names."),
      h("label", { for: "token" }, "Token ", input),
      h("div", { class: "actions" }, h("button", { value: "yes" }, "Go on")),
    );
    open(dialog, form, () => decide(input.value));
  });
}

function open(dialog, form, ended) {
  const was = place();
  dialog.returnValue = "";
  dialog.replaceChildren(form);
  const close = () => {
    goBack(was);
    ended();
  };
  dialog.addEventListener("close", close, { once: true });
  if (!dialog.open) dialog.showModal();
}

/** Tells something for a few seconds. */
export function tell(words, tone = "ok") {
  const toast = h("div", { class: `toast ${tone}` }, words);
  $("toasts").append(toast);
  setTimeout(() => toast.remove(), tone === "bad" ? 12_000 : 5_000);
}
