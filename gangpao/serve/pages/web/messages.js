// The messages of a conversation: question, answer, what can be done with them, and what an answer cost.

import { copyFrom, h, icon, iconButton } from "./dom.js";
import { shown } from "./files.js";
import { errorText, t, yuan } from "./i18n.js";
import { Markdown } from "./markdown.js";
import { Thought } from "./thought.js";
import { imagesOf, path, place, textOf } from "./tree.js";

const NEAR_PX = 80;

export class Messages {
  /** `actions`: edit(node, text), again(node), choose(node, step), key(), for what is pressed here. */
  constructor(actions) {
    this.actions = actions;
    this.items = new Map(); // node id -> { element, body, markdown, thought }
    this.opened = new Set(); // ids of answers whose thought somebody reads
    this.list = h("div", { className: "messages", role: "group", "aria-label": t("conversation") });
    this.jump = iconButton("down", t("toEnd"), () => this.toEnd(), { className: "icon-button jump", hidden: true });
    this.element = h("div", { className: "scroller", tabindex: "-1" }, this.list);
    this.element.addEventListener("scroll", () => this.#noteScroll(), { passive: true });
    this.pinned = true;
  }

  #noteScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.element;
    this.pinned = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    this.jump.hidden = this.pinned;
  }

  toEnd() {
    this.element.scrollTop = this.element.scrollHeight;
    this.pinned = true;
    this.jump.hidden = true;
  }

  /** Show the chosen path of a conversation; `running` is the id of the answer being written, if there is one. */
  show(conversation, running = "") {
    const nodes = path(conversation);
    const before = this.items;
    this.items = new Map();
    this.list.replaceChildren(...nodes.map((node) => {
      const { index, count } = place(conversation, node.id);
      const stamp = JSON.stringify([index, count, node.finish, node.error, node.id === running, document.documentElement.lang]);
      const old = before.get(node.id);
      const item = old?.stamp === stamp ? old : this.#item(node, { index, count }, node.id === running);
      item.stamp = stamp;
      this.items.set(node.id, item);
      return item.element;
    }));
    if (this.pinned) this.toEnd();
  }

  /** Forget what was drawn, because another conversation comes or the libraries are here now. */
  reset() {
    this.items.clear();
    this.pinned = true;
  }

  /** An answer has grown. */
  grow(node) {
    const item = this.items.get(node.id);
    if (!item) return;
    item.markdown.show(textOf(node.content), false);
    item.thought.show(node, true);
    if (this.pinned) this.element.scrollTop = this.element.scrollHeight;
  }

  #item(node, where, running) {
    const body = h("div", { className: "body" });
    const mine = node.role === "user";
    const element = h("article", {
      className: `message ${node.role}${running ? " running" : ""}`, "aria-label": mine ? t("you") : node.model || t("answer"),
      "aria-busy": running ? "true" : null, dataset: { id: node.id },
    }, body);
    let markdown = null;
    let thought = null;
    if (mine) this.#question(body, node);
    else {
      markdown = new Markdown(body);
      markdown.show(textOf(node.content), !running);
      thought = new Thought(this.opened.has(node.id), (open) => this.opened[open ? "add" : "delete"](node.id));
      thought.show(node, running);
      body.before(thought.element);
    }
    if (node.error) element.append(this.#error(node));
    else if (node.finish === "length") element.append(h("p", { className: "note", textContent: t("cutShort") }));
    else if (node.finish === "stopped") element.append(h("p", { className: "note", textContent: t("stopped") }));
    if (!running) element.append(this.#footer(node, where, element));
    return { element, body, markdown, thought };
  }

  #question(body, node) {
    for (const url of imagesOf(node.content)) body.append(h("img", { src: url, alt: t("attachedImage") }));
    body.append(...(node.files ?? []).map(shown));
    const text = textOf(node.content);
    if (text) body.append(h("p", { className: "plain", textContent: text }));
  }

  #footer(node, { index, count }, element) {
    const bar = h("div", { className: "actions" });
    if (count > 1) {
      const step = (by) => this.actions.choose(node, by);
      bar.append(h("span", { className: "branch", role: "group", "aria-label": t("versions") },
        iconButton("left", t("previousVersion"), () => step(-1), { disabled: index === 0 }),
        h("span", { textContent: `${index + 1} / ${count}` }),
        iconButton("right", t("nextVersion"), () => step(1), { disabled: index === count - 1 })));
    }
    const copy = iconButton("copy", t("copy"), () => copyFrom(copy, textOf(node.content)));
    bar.append(copy);
    if (node.role === "user") bar.append(iconButton("edit", t("edit"), () => this.#edit(node, element)));
    else bar.append(iconButton("again", t("again"), () => this.actions.again(node)));
    const cost = statistics(node.stats);
    return h("footer", {}, bar, cost ? h("p", { className: "stats", textContent: cost }) : null);
  }

  #error(node) {
    const { error } = node;
    const [label, act] = error.kind === "key"
      ? [t("enterKey"), () => this.actions.key()]
      : [t("tryAgain"), () => this.actions.again(node)];
    return h("div", { className: "error", role: "alert" },
      h("p", { textContent: errorText(error) }),
      h("button", { type: "button", className: "button", textContent: label, onclick: act }));
  }

  /** The question becomes a field; sending it makes a new branch. */
  #edit(node, element) {
    const field = h("textarea", { value: textOf(node.content), rows: 3, "aria-label": t("editQuestion") });
    const close = () => {
      form.replaceWith(...old);
      element.querySelector("footer .icon-button:last-child")?.focus();
    };
    const save = () => {
      const text = field.value.trim();
      if (text) this.actions.edit(node, text);
    };
    const form = h("div", { className: "editing" }, field, h("div", { className: "row" },
      h("button", { type: "button", className: "button", textContent: t("cancel"), onclick: close }),
      h("button", { type: "button", className: "button primary", textContent: t("sendEdited"), onclick: save })));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        save();
      }
    });
    const old = [...element.childNodes];
    element.replaceChildren(form);
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }
}

/** "31.2 tokens/s · 120 tokens · ¥0.000021": what is known of an answer. */
export function statistics(stats) {
  if (!stats) return "";
  const out = [];
  if (stats.tps > 0) out.push(t("tokensPerSecond", { n: stats.tps.toFixed(stats.tps < 10 ? 1 : 0) }));
  if (stats.tokens > 0) out.push(t("tokens", { n: stats.tokens }));
  if (stats.first > 0) out.push(t("firstAfter", { n: stats.first.toFixed(stats.first < 10 ? 1 : 0) }));
  if (stats.yuan > 0) out.push(yuan(stats.yuan));
  return out.join(" · ");
}

/** What is shown before the first question. */
export function greeting(title, hint, examples, onexample) {
  return h("div", { className: "greeting" }, h("h1", { textContent: title }), hint ? h("p", { textContent: hint }) : null,
    h("div", { className: "examples" }, examples.map((text) =>
      h("button", { type: "button", onclick: () => onexample(text) }, h("span", { textContent: text }), icon("send")))));
}
