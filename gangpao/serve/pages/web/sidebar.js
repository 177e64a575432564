// The list of conversations: by day, searchable, each with a new name, a file, and an end that can be undone.

import { download, h, iconButton } from "./dom.js";
import { t } from "./i18n.js";
import { imagesOf, path, textOf, toMarkdown } from "./tree.js";

const DAY_MS = 86_400_000;

export class Sidebar {
  /** `actions`: open(id), fresh(), rename(id, title), remove(id), settings(). */
  constructor(actions) {
    this.actions = actions;
    this.conversations = [];
    this.current = "";
    this.search = h("input", { type: "search", placeholder: t("search"), "aria-label": t("search"), oninput: () => this.#draw() });
    this.list = h("div", { className: "list" });
    this.element = h("nav", { className: "sidebar", id: "sidebar", "aria-label": t("conversations") },
      h("div", { className: "brand" }, h("img", { src: "/web/icon.svg", alt: "", width: 24, height: 24 }), h("span", { textContent: "gangpao" }),
        iconButton("close", t("closeList"), () => this.toggle(false), { className: "icon-button narrow-only" })),
      h("button", { type: "button", className: "button wide", onclick: () => actions.fresh(), textContent: t("newConversation") }),
      this.search, this.list,
      h("div", { className: "foot" }, h("button", { type: "button", className: "quiet", textContent: t("settings"), onclick: () => actions.settings() }),
        ...(actions.links ?? []).map(([text, url]) => h("a", { className: "quiet", href: url, textContent: text }))));
  }

  /** Show or hide one of the links at the foot. */
  showLink(url, shown) {
    for (const link of this.element.querySelectorAll(`.foot a[href="${url}"]`)) link.hidden = !shown;
  }

  /** Open or close the drawer that the list is on a narrow screen. */
  toggle(open = !document.body.classList.contains("list-open")) {
    document.body.classList.toggle("list-open", open);
    document.querySelector(".main").inert = open && matchMedia("(max-width: 800px)").matches;
    if (open) this.search.focus();
    else document.querySelector(".menu-button")?.focus();
    document.querySelector(".menu-button")?.setAttribute("aria-expanded", String(open));
  }

  show(conversations, current) {
    this.conversations = conversations;
    this.current = current;
    this.#draw();
  }

  #draw() {
    const wanted = this.search.value.trim().toLowerCase();
    const found = this.conversations.filter((one) => !wanted || searchText(one).includes(wanted));
    this.list.replaceChildren();
    let group = "";
    for (const one of found) {
      const name = dayOf(one.updated);
      if (name !== group) this.list.append(h("h2", { textContent: t(name) }));
      group = name;
      this.list.append(this.#row(one));
    }
    if (!found.length) this.list.append(h("p", { className: "none", textContent: t(wanted ? "nothingFound" : "noConversations") }));
  }

  #row(one) {
    const current = one.id === this.current;
    const title = one.title || t("untitled");
    const open = h("button", {
      type: "button", className: "title", textContent: title, title, "aria-current": current ? "page" : null,
      onclick: () => this.actions.open(one.id),
    });
    const row = h("div", { className: `conversation${current ? " current" : ""}`, dataset: { id: one.id } }, open, h("span", { className: "tools" },
      iconButton("edit", t("renameNamed", { title }), () => this.#rename(row, one)),
      iconButton("save", t("exportNamed", { title }), () => exportMarkdown(one)),
      iconButton("delete", t("deleteNamed", { title }), () => this.actions.remove(one.id))));
    return row;
  }

  #rename(row, one) {
    const field = h("input", { type: "text", value: one.title, maxlength: 200, "aria-label": t("newName") });
    let over = false;
    const end = (keep) => {
      if (over) return;
      over = true;
      const title = field.value.trim();
      if (keep && title && title !== one.title) this.actions.rename(one.id, title);
      else this.#draw();
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        end(false);
      }
    });
    field.addEventListener("blur", () => end(true));
    row.replaceChildren(field);
    field.select();
  }
}

function searchText(conversation) {
  const nodes = Object.values(conversation.nodes);
  return [conversation.title, ...nodes.flatMap((node) => [textOf(node.content), ...(node.files ?? []).map(({ name }) => name)])].join("\n").toLowerCase();
}

function dayOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "today";
  if (time >= midnight - DAY_MS) return "yesterday";
  return time >= midnight - 6 * DAY_MS ? "thisWeek" : "earlier";
}

/** A file name out of a title. */
export function fileName(title, suffix) {
  return `${title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "conversation"}.${suffix}`;
}

export function exportMarkdown(conversation) {
  const names = { you: t("you"), model: t("answer"), untitled: t("untitled") };
  download(fileName(conversation.title, "md"), "text/markdown", toMarkdown(conversation, names));
}

/** Every message of some conversations, all branches, in the form that import reads. */
export function exportJson(conversations) {
  const title = conversations.length === 1 ? conversations[0].title : "gangpao-conversations";
  const body = { format: "gangpao-conversations", version: 1, conversations };
  download(fileName(title, "json"), "application/json", `${JSON.stringify(body, null, 1)}\n`);
}

/** The first words of the first question, or the name of what came with it. */
export function titleOf(conversation) {
  const first = path(conversation)[0];
  const text = (first && textOf(first.content).trim().split("\n")[0]) || first?.files?.[0].name || (first && imagesOf(first.content).length && t("onlyImage")) || "";
  return text.length > 48 ? `${text.slice(0, 47)}…` : text;
}
