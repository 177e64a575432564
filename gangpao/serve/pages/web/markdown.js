// Answers as Markdown, while they are still being written.
//
// marked cuts a text into blocks; only blocks whose source changed are rendered again. Three walls stand between an
// answer and the page: HTML in it is shown as the text it is, what marked makes goes through DOMPurify with a short list
// of allowed elements, and the page's policy runs no script that is not a file of ours. Images are never loaded.
// Without the libraries, which are not part of gangpao, everything is plain text; without KaTeX alone, formulas are (math.js).

import { copyFrom, h } from "./dom.js";
import { drawMath, mathExtensions, setKatex } from "./math.js";
import { t } from "./i18n.js";

const TAGS = ["p", "br", "strong", "em", "del", "code", "pre", "ul", "ol", "li", "blockquote", "a", "hr", "input", "h1", "h2",
  "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td", "span"];
const ATTRIBUTES = ["href", "title", "class", "start", "align", "type", "checked", "disabled"];
const POLICY = { ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ATTRIBUTES, ALLOW_DATA_ATTR: false, ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i, RETURN_DOM_FRAGMENT: true,
  // The rule for addresses would else be asked about these, too, and drop them: no boxes, every list from 1, no columns aligned.
  ADD_URI_SAFE_ATTR: ["type", "start", "align"] };
const MAX_COLOURED = 30_000; // characters of code; colouring more takes longer than reading it
const POLL_MS = 1500;
const POLLS = 80;
const NAMES = ["marked", "dompurify", "highlight", "katex"]; // the last one is not needed for the others

let libraries = null;

/** Load the libraries, asking the server to fetch them first. Resolves to "" or to why there are none; formulas alone may lack. */
export async function loadLibraries(state = serverState) {
  let problem = "";
  for (let poll = 0; poll < POLLS; poll++) {
    const { ready, problem: why, here } = await state();
    if (ready || why) return (await use(here ?? NAMES.map((name) => `${name}.js`))) ? "" : why || "?";
    problem = why;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  return problem || "?";
}

/** Use those libraries that are there; whether answers can be formatted. */
async function use(here) {
  const found = NAMES.filter((name) => here.includes(`${name}.js`));
  const loaded = await Promise.allSettled(found.map((name) => import(`/parts/${name}.js`)));
  const { marked, dompurify, highlight } = Object.fromEntries(found.map((name, index) => [name, loaded[index].value]));
  if (globalThis.katex) setKatex(globalThis.katex);
  if (marked && dompurify && highlight) libraries = prepare(marked, dompurify.default, highlight.default);
  return libraries !== null;
}

/** Which libraries the server has; without a network the browser may have kept them. */
async function serverState() {
  try {
    return await (await fetch("/web/parts", { method: "POST" })).json();
  } catch {
    return { ready: true };
  }
}

function prepare({ Marked }, purify, coloured) {
  const escape = (text) => text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
  const renderer = {
    html: ({ text }) => (/^<br\s*\/?>$/i.test(text.trim()) ? "<br>" : escape(text)),
    // A picture from elsewhere would tell its owner who reads what, and when.
    image: ({ href, text }) => `<a href="${escape(href)}">[${escape(text || href)}]</a>`,
  };
  purify.addHook("uponSanitizeAttribute", (element, data) => {
    if (data.attrName === "class" && !/^(language-[\w+#.-]+|hljs-[\w -]+|math-(?:inline|display))$/.test(data.attrValue)) data.keepAttr = false;
  });
  purify.addHook("afterSanitizeAttributes", (element) => {
    if (element.nodeName === "A") {
      element.setAttribute("target", "_blank");
      element.setAttribute("rel", "noopener noreferrer nofollow");
    }
    if (element.nodeName === "INPUT") {
      if (element.getAttribute("type") !== "checkbox") element.remove();
      else element.setAttribute("disabled", "");
    }
  });
  return { marked: new Marked({ gfm: true, breaks: true, renderer, extensions: mathExtensions(escape) }), purify, coloured };
}

/** Shows a growing text in `element`. */
export class Markdown {
  constructor(element) {
    this.element = element;
    this.blocks = []; // { raw, nodes }
  }

  /** Show this text. `done` says that it will not grow any more. */
  show(text, done = true) {
    if (!libraries) {
      if (this.element.textContent !== text || this.element.children.length) this.element.textContent = text;
      this.element.classList.add("plain");
      this.blocks = [];
      return;
    }
    if (this.element.classList.contains("plain")) {
      this.element.classList.remove("plain");
      this.element.replaceChildren();
    }
    const tokens = libraries.marked.lexer(text);
    let same = 0;
    while (same < tokens.length && same < this.blocks.length && this.blocks[same].raw === tokens[same].raw) same++;
    if (same === tokens.length && same === this.blocks.length && !done) return;
    for (const block of this.blocks.splice(same)) block.nodes.forEach((node) => node.remove());
    for (const token of tokens.slice(same)) {
      const nodes = [...render(token).childNodes];
      this.element.append(...nodes);
      this.blocks.push({ raw: token.raw, nodes });
    }
  }
}

function render(token) {
  const fragment = libraries.purify.sanitize(libraries.marked.parser([token]), POLICY);
  fragment.querySelectorAll("pre").forEach(dressCode);
  drawMath(fragment);
  fragment.querySelectorAll("table").forEach((table) => {
    const frame = h("div", { className: "table", tabindex: "0", role: "region", "aria-label": t("table") });
    table.replaceWith(frame);
    frame.append(table);
  });
  return fragment;
}

/** Colours, the language's name and a copy button around a block of code. */
function dressCode(pre) {
  const code = pre.querySelector("code") ?? pre;
  const text = code.textContent;
  const language = /language-([\w+#.-]+)/.exec(code.className)?.[1] ?? "";
  if (language && text.length < MAX_COLOURED && libraries.coloured.getLanguage(language)) {
    const { value } = libraries.coloured.highlight(text, { language, ignoreIllegals: true });
    code.replaceChildren(libraries.purify.sanitize(value, POLICY));
  }
  const button = h("button", { type: "button", className: "copy", textContent: t("copy"), "aria-label": t("copyCode") });
  button.addEventListener("click", () => copyFrom(button, text.replace(/\n$/, "")));
  const frame = h("figure", { className: "code" }, h("figcaption", {}, h("span", { textContent: language }), button));
  pre.replaceWith(frame);
  pre.tabIndex = 0; // a long line is scrolled with the keyboard
  frame.append(pre);
}
