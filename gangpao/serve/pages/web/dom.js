// Elements from calls instead of from strings: no text can become markup on its way into the page.

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["className", "value", "checked", "disabled", "hidden", "textContent", "inert", "htmlFor", "open"]);

/** An element: `props` are properties, attributes, or listeners (onclick: f); children are nodes or strings, null is left out. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (PROPERTIES.has(name)) element[name] = value;
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** One of the drawings in icons.svg; decoration only, the name stands beside it or in a label. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `/web/icons.svg#${name}`);
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** A button that shows only a drawing; the label is read aloud and shown on hovering. */
export function iconButton(name, label, onclick, props = {}) {
  return h("button", { type: "button", className: "icon-button", "aria-label": label, title: label, onclick, ...props }, icon(name));
}

/** Copy a text; the button shows for a moment that it worked. */
export async function copyFrom(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // no clipboard without https: the older way
    const area = h("textarea", { className: "offscreen", value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const before = [...button.childNodes];
  button.replaceChildren(icon("check"));
  button.classList.add("done");
  setTimeout(() => {
    button.replaceChildren(...before);
    button.classList.remove("done");
  }, 1500);
}

/** Offer a text as a file. */
export function download(name, type, text) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** A modal dialog with a title, a close button and focus where the browser puts it; removed when it closes. */
export function dialog(title, closeLabel, ...children) {
  const id = `title-${Math.random().toString(36).slice(2)}`;
  const box = h("dialog", { "aria-labelledby": id },
    h("header", {}, h("h2", { id, textContent: title }), iconButton("close", closeLabel, () => box.close())),
    ...children);
  box.addEventListener("close", () => box.remove());
  box.addEventListener("click", (event) => event.target === box && box.close()); // outside of it
  document.body.append(box);
  box.showModal();
  return box;
}
