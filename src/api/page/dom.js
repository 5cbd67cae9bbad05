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

/** Where the focus is, to be found again when that is drawn anew: in which list, in which of its rows, on what. */
export function place() {
  const active = document.activeElement;
  const row = active?.closest("[data-key]");
  return row && active.dataset.act ? { list: row.parentElement, key: row.dataset.key, act: active.dataset.act } : null;
}

/** Puts the focus back, where nothing else has got it meanwhile. */
export function goBack(was) {
  if (!was || (document.activeElement && document.activeElement !== document.body)) return;
  const row = [...was.list.children].find((child) => child.dataset.key === was.key);
  row?.querySelector(`[data-act="${CSS.escape(was.act)}"]`)?.focus();
}

/**
 * Makes the children of `parent` those of `items`, in their order. A child is kept as long as its key and its `stamp` (what
 * it shows) stay; the focus stays where it is also when its row is moved or drawn anew.
 */
export function sync(parent, items, key, stamp, make) {
  const was = parent.contains(document.activeElement) ? place() : null;
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
        if (child === at) at = fresh;
        child.replaceWith(fresh);
      }
      child = fresh;
    }
    if (child !== at) parent.insertBefore(child, at);
    else at = at.nextElementSibling;
  }
  for (const child of known.values()) child.remove();
  goBack(was);
}

export const $ = (id) => document.getElementById(id);
