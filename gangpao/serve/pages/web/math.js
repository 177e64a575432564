// Formulas in answers: \( \), \[ \], $$ $$ and $ $ are found by marked, and drawn by KaTeX where it is there.
//
// What marked makes of a formula is its source in an element of ours, which goes through the sanitizer like all the rest.
// KaTeX then builds elements, never a string of HTML, with `trust` off; what it built is looked at once more before it is shown.
// A $ is a formula's only where it cannot well be money or a variable of a shell: see `isMath`.

import { h } from "./dom.js";

const MAX_LENGTH = 5_000; // characters; a formula is shorter
const BODY = String.raw`(?:(?!\n[ \t]*\n)[\s\S])+?`; // anything but an empty line
const BLOCK = new RegExp(String.raw`^ {0,3}(?:\$\$${BODY}\$\$|\\\[${BODY}\\\])[ \t]*(?:\n|$)`);
const DISPLAY = new RegExp(String.raw`^(?:\$\$(?:\\.|[^$\\])+?\$\$|\\\[${BODY}\\\])`);
const INLINE = new RegExp(String.raw`^(?:\\\(${BODY}\\\)|\$(?![\s$])(?:\\.|[^$\\\n])*?(?:\\.|[^\s$\\])\$(?![\d$]))`);
const ELEMENTS = new Set(["span", "math", "semantics", "annotation", "mrow", "mi", "mn", "mo", "ms", "mtext", "mspace", "msup", "msub", "msubsup",
  "mfrac", "msqrt", "mroot", "mover", "munder", "munderover", "mtable", "mtr", "mtd", "mlabeledtr", "mstyle", "mpadded", "mphantom", "menclose",
  "mglyph", "svg", "path", "line", "g"]);
const ATTRIBUTES = /^(?!on|href|src|xlink:)[a-z][\w-]*$/i;

let katex = null;

/** Use this KaTeX from now on; its styles come with it. */
export function setKatex(library) {
  katex = library;
  if (!document.querySelector("link[href='/parts/katex.css']")) document.head.append(h("link", { rel: "stylesheet", href: "/parts/katex.css" }));
}

/** Whether what a pair of $ encloses is a formula: `before` and `after` are the characters around it. */
export function isMath(body, before, after) {
  if (/[\w\\$]/.test(before)) return false; // US$5
  if (/[A-Za-z{]/.test(after) && !/[\w)\]}'|!]$/.test(body)) return false; // $HOME/$USER
  if (body.includes("\\")) return true;
  // Words: "$5 million or 6$", "$5 和 6$".
  return !/[\u3000-\u9fff\uff00-\uffef]/.test(body) && !/^\d[\d.,]*\s+[A-Za-z]{2,}/.test(body) && !/(?:^|\s)[A-Za-z]{2,}\s+[A-Za-z]{2,}/.test(body);
}

/** Extensions for marked. `escape` makes a text safe in HTML. */
export function mathExtensions(escape) {
  const renderer = ({ raw, display }) => `<code class="math-${display ? "display" : "inline"}">${escape(raw.trim())}</code>`;
  return [
    {
      name: "mathBlock",
      level: "block",
      start: (src) => {
        const found = /(?:^|\n) {0,3}(?:\$\$|\\\[)/.exec(src);
        return found ? found.index + (found[0].startsWith("\n") ? 1 : 0) : undefined;
      },
      tokenizer: (src) => {
        const found = BLOCK.exec(src);
        return found && { type: "mathBlock", raw: found[0], display: true };
      },
      renderer: (token) => `<p>${renderer(token)}</p>`,
    },
    {
      name: "mathInline",
      level: "inline",
      start: (src) => {
        const at = src.search(/\$|\\[([]/);
        return at < 0 ? undefined : at;
      },
      tokenizer: (src, tokens) => {
        const display = DISPLAY.exec(src);
        if (display) return { type: "mathInline", raw: display[0], display: true };
        const raw = INLINE.exec(src)?.[0];
        if (!raw) return undefined;
        const dollar = raw.startsWith("$");
        if (dollar && !isMath(raw.slice(1, -1), tokens?.at(-1)?.raw?.at(-1) ?? "", src[raw.length] ?? "")) return undefined;
        return { type: "mathInline", raw, display: false };
      },
      renderer,
    },
  ];
}

/** Draw the formulas in a fragment. One that KaTeX does not understand, or that it may not draw, stays the source that it is. */
export function drawMath(fragment) {
  for (const code of fragment.querySelectorAll("code.math-inline, code.math-display")) {
    const raw = code.textContent;
    const display = code.className === "math-display";
    const drawn = katex && raw.length <= MAX_LENGTH ? draw(raw.replace(/^(\$\$?|\\[([])|(\$\$?|\\[)\]])$/g, ""), display) : null;
    code.replaceWith(drawn ?? h("span", { className: display ? "math source" : "source", textContent: raw }));
  }
}

function draw(source, displayMode) {
  // KaTeX writes these two as style attributes in its MathML, which the page's policy forbids.
  const output = /\\(?:pmb|fcolorbox)\b/.test(source) ? "html" : "htmlAndMathml";
  const frame = h("span", displayMode ? { className: "math", tabindex: "0", role: "math", "aria-label": source } : {});
  try {
    katex.render(source, frame, { displayMode, output, throwOnError: true, trust: false, strict: "ignore", maxSize: 20, maxExpand: 300 });
  } catch {
    return null; // a command it does not know, or half a formula
  }
  const strange = [...frame.querySelectorAll("*")].some((element) =>
    !ELEMENTS.has(element.localName) || [...element.attributes].some(({ name }) => !ATTRIBUTES.test(name)));
  return strange ? null : frame;
}
