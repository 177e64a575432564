// A conversation as a tree of messages: editing a question or asking again makes a sister, nothing is overwritten.
//
// { id, title, created, updated, system, nodes: { id: node }, root: { children, chosen } }
// node: { id, parent ("" under the root), role, content, children, chosen (index), ... }
// What is shown is the path that follows `chosen` from the root.

import { withFiles } from "./files.js";

const LIMITS = { nodes: 20_000, text: 4_000_000, title: 200, files: 64 };

export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function newConversation(system = "") {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, system, nodes: {}, root: { children: [], chosen: 0 } };
}

const holder = (conversation, parent) => (parent ? conversation.nodes[parent] : conversation.root);

/** Add a message under `parent` ("" is the root) and choose it. */
export function append(conversation, parent, role, content, more = {}) {
  const node = { id: newId(), parent, role, content, created: Date.now(), children: [], chosen: 0, ...more };
  conversation.nodes[node.id] = node;
  const above = holder(conversation, parent);
  above.children.push(node.id);
  above.chosen = above.children.length - 1;
  return node;
}

/** The messages that are shown, first to last; up to and with `last` where that is given. */
export function path(conversation, last = null) {
  const out = [];
  if (last) {
    for (let id = last; id; id = conversation.nodes[id].parent) out.unshift(conversation.nodes[id]);
    return out;
  }
  let above = conversation.root;
  while (above.children.length) {
    above = conversation.nodes[above.children[above.chosen]];
    out.push(above);
  }
  return out;
}

/** Which of how many sisters a message is. */
export function place(conversation, id) {
  const { children } = holder(conversation, conversation.nodes[id].parent);
  return { index: children.indexOf(id), count: children.length };
}

/** Show the sister `step` places away; her id. */
export function choose(conversation, id, step) {
  const above = holder(conversation, conversation.nodes[id].parent);
  above.chosen = Math.min(Math.max(above.children.indexOf(id) + step, 0), above.children.length - 1);
  return above.children[above.chosen];
}

/** The text of a message, its images left out. */
export function textOf(content) {
  if (typeof content === "string") return content;
  return content.filter((part) => part.type === "text").map((part) => part.text).join("\n");
}

/** The data: URLs of a message's images. */
export function imagesOf(content) {
  return typeof content === "string" ? [] : content.filter((part) => part.type === "image_url").map((part) => part.image_url.url);
}

/** A conversation out of a file: what is not one is refused with an Error; what we do not know is dropped. */
export function checked(raw) {
  const fail = () => {
    throw new Error("not a conversation");
  };
  const text = (value, limit) => (typeof value === "string" && value.length <= limit ? value : fail());
  const time = (value) => (Number.isFinite(value) ? value : Date.now());
  if (!raw || typeof raw !== "object" || !raw.nodes || !raw.root) fail();
  const entries = Object.entries(raw.nodes);
  if (entries.length > LIMITS.nodes) fail();
  const nodes = Object.create(null);
  const children = (node) => {
    const list = Array.isArray(node.children) ? node.children.map((id) => text(id, 64)) : fail();
    const chosen = Number.isInteger(node.chosen) ? Math.min(Math.max(node.chosen, 0), Math.max(0, list.length - 1)) : 0;
    return { children: list, chosen };
  };
  for (const [id, node] of entries) {
    if (!node || !["user", "assistant"].includes(node.role)) fail();
    const out = { id: text(id, 64), parent: text(node.parent ?? "", 64), role: node.role, created: time(node.created) };
    nodes[id] = { ...out, content: checkedContent(node.content, text, fail), ...children(node), ...checkedNotes(node, text, fail) };
  }
  const root = children(raw.root);
  let reached = 0;
  const seen = new Set();
  const visit = [...root.children.map((id) => ["", id])];
  while (visit.length) {
    const [parent, id] = visit.pop();
    if (!nodes[id] || seen.has(id) || nodes[id].parent !== parent) fail();
    seen.add(id);
    reached += 1;
    visit.push(...nodes[id].children.map((child) => [id, child]));
  }
  if (reached !== entries.length) fail();
  return {
    id: newId(), title: text(raw.title ?? "", LIMITS.title), system: text(raw.system ?? "", LIMITS.text),
    created: time(raw.created), updated: time(raw.updated), nodes: { ...nodes }, root,
  };
}

function checkedContent(content, text, fail) {
  if (typeof content === "string") return text(content, LIMITS.text);
  if (!Array.isArray(content)) fail();
  return content.map((part) => {
    if (part?.type === "text") return { type: "text", text: text(part.text, LIMITS.text) };
    const url = part?.image_url?.url;
    if (typeof url !== "string" || !/^data:image\/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=]+$/.test(url)) fail();
    return { type: "image_url", image_url: { url } };
  });
}

function checkedNotes(node, text, fail) {
  const out = {};
  if (node.thought) out.thought = text(node.thought, LIMITS.text);
  if (node.files) {
    if (!Array.isArray(node.files) || node.files.length > LIMITS.files) fail();
    out.files = node.files.map((file) => ({ name: text(file?.name, LIMITS.title), text: text(file?.text, LIMITS.text) }));
  }
  if (typeof node.model === "string") out.model = node.model.slice(0, 200);
  if (typeof node.finish === "string") out.finish = node.finish.slice(0, 40);
  const stats = node.stats;
  if (stats && typeof stats === "object") {
    const numbers = Object.entries(stats).filter(([key, value]) => /^[a-z_]{1,20}$/.test(key) && Number.isFinite(value));
    out.stats = Object.fromEntries(numbers);
  }
  return out;
}

/** The shown path as Markdown. */
export function toMarkdown(conversation, names) {
  const blocks = [`# ${conversation.title || names.untitled}`];
  if (conversation.system) blocks.push(`> ${conversation.system.replaceAll("\n", "\n> ")}`);
  for (const node of path(conversation)) {
    const images = imagesOf(node.content).map((url) => `![](${url})`);
    blocks.push(`## ${node.role === "user" ? names.you : node.model || names.model}`, ...images, withFiles(textOf(node.content), node.files));
  }
  return `${blocks.join("\n\n")}\n`;
}
