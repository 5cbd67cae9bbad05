// Elements out of data. Text is only ever text: a name can't become markup.

/** Makes an element: `h("p", {class: "quiet", onclick: f}, "text", child)`. */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

/** Writes a text only where it differs, so that nothing is read out or selected anew. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Makes the children of `parent` those of `items`, in their order. A child is kept as long as its key and its `stamp` (what
 * it shows) stay: the focus stays with it.
 */
export function sync(parent, items, key, stamp, make) {
  const known = new Map();
  for (const child of parent.children) known.set(child.dataset.key, child);
  let at = parent.firstElementChild;
  for (const item of items) {
    const [id, shown] = [String(key(item)), String(stamp(item))];
    let child = known.get(id);
    known.delete(id);
    if (!child || child.dataset.stamp !== shown) {
      const fresh = make(item);
      fresh.dataset.key = id;
      fresh.dataset.stamp = shown;
      if (child) {
        const held = child.contains(document.activeElement) && document.activeElement.dataset.act;
        if (child === at) at = child.nextElementSibling;
        child.replaceWith(fresh);
        if (held) fresh.querySelector(`[data-act="${held}"]`)?.focus();
      }
      child = fresh;
    }
    if (child !== at) parent.insertBefore(child, at);
    else at = at.nextElementSibling;
  }
  for (const child of known.values()) child.remove();
}

export const $ = (id) => document.getElementById(id);
