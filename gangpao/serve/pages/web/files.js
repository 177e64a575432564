// Text files that go with a question: read in the page, shown as small tags, sent as a quoted block with their name.

import { h, iconButton } from "./dom.js";
import { bytes, t } from "./i18n.js";

export const MAX_BYTES = 256 * 1024;
export const MAX_FILES = 8;
// What a file picker offers first; any file that holds text is taken.
export const ACCEPT = ".txt,.md,.markdown,.csv,.tsv,.json,.jsonl,.xml,.html,.css,.js,.ts,.py,.c,.h,.cpp,.rs,.go,.java,.sh,.sql,.toml,.yaml,.yml,.ini,.log,.tex,text/*";
const LANGUAGE = /\.([\w+#-]{1,12})$/;

/** { name, text } of a file. Throws an Error that says to its reader why it is not taken. */
export async function readText(file) {
  if (file.size > MAX_BYTES) throw new Error(t("fileTooLarge", { name: file.name, size: bytes(file.size), limit: bytes(MAX_BYTES) }));
  const text = decoded(new Uint8Array(await file.arrayBuffer()));
  if (text === null) throw new Error(t("fileNotText", { name: file.name }));
  if (!text.trim()) throw new Error(t("fileEmpty", { name: file.name }));
  return { name: file.name, text: text.replace(/\r\n?/g, "\n") };
}

/** Text of bytes: UTF-8, UTF-16 with its mark, or GB 18030, in which Chinese Windows writes; null for anything else. */
function decoded(data) {
  const utf16 = (data[0] === 0xff && data[1] === 0xfe) || (data[0] === 0xfe && data[1] === 0xff);
  for (const encoding of utf16 ? [data[0] === 0xff ? "utf-16le" : "utf-16be"] : ["utf-8", "gb18030"]) {
    try {
      const text = new TextDecoder(encoding, { fatal: true }).decode(data);
      // eslint-disable-next-line no-control-regex -- they are what tells a text from other files
      if (!/[\u0000-\u0008\u000e-\u001a\u001c-\u001f]/.test(text)) return text;
    } catch {
      continue; // another encoding, then
    }
  }
  return null;
}

/** A question with its files, as the model reads it. */
export function withFiles(text, files = []) {
  return [...files.map(quoted), text].filter(Boolean).join("\n\n");
}

function quoted({ name, text }) {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([run]) => run.length));
  const fence = "`".repeat(longest + 1); // longer than any in the file, so that it cannot end the quotation
  return `${name}:\n${fence}${LANGUAGE.exec(name)?.[1].toLowerCase() ?? ""}\n${text.replace(/\n$/, "")}\n${fence}`;
}

/** A tag in the composer: name, size, and a way to take it away. */
export function tag({ name, text }, remove) {
  return h("span", { className: "file" }, h("span", { className: "name", textContent: name }), h("span", { className: "hint", textContent: bytes(new Blob([text]).size) }),
    iconButton("close", t("removeFile", { name }), remove));
}

/** A file in a question that was asked: its name, and its text for whoever opens it. */
export function shown({ name, text }) {
  return h("details", { className: "file" }, h("summary", {}, h("span", { className: "name", textContent: name }), h("span", { className: "hint", textContent: bytes(new Blob([text]).size) })),
    h("pre", { tabindex: "0", textContent: text }));
}

/** Files that are dropped on `element` go to `take(files)`; the page shows that they may. */
export function dropTarget(element, take) {
  const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let depth = 0; // of elements that the pointer is in
  const enter = (by) => {
    depth = Math.max(0, depth + by);
    element.classList.toggle("dropping", depth > 0);
  };
  element.addEventListener("dragenter", (event) => files(event) && enter(1));
  element.addEventListener("dragleave", (event) => files(event) && enter(-1));
  element.addEventListener("dragover", (event) => files(event) && event.preventDefault());
  element.addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    depth = 0;
    enter(0);
    take([...event.dataTransfer.files]);
  });
}
