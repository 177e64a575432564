// The chat: it holds conversation, model and settings together; a backend answers (the server, or this device).

import { Announcer } from "./announce.js";
import { ChatError } from "./backend-server.js";
import { Composer } from "./composer.js";
import { h, iconButton } from "./dom.js";
import { dropTarget, withFiles } from "./files.js";
import { errorText, setLanguage, setTheme, t } from "./i18n.js";
import { loadLibraries } from "./markdown.js";
import { Messages, greeting } from "./messages.js";
import { askKey, openHelp, openSettings } from "./settings.js";
import { Sidebar, titleOf } from "./sidebar.js";
import { loadSettings, openStore, saveSettings } from "./store.js";
import { append, checked, choose, newConversation, path, textOf } from "./tree.js";

const SAVE_MS = 1000;
const UNDO_MS = 7000;
const MAX_IMPORT = 200_000_000;

export class App {
  /** `make(settings)` gives the backend; `options`: store (name), links, panel(app) above the messages, moreSettings(app). */
  constructor(root, make, options = {}) {
    this.root = root;
    this.options = options;
    this.settings = loadSettings();
    this.backend = make(this.settings);
    this.models = [];
    this.runs = new Map(); // conversation id -> { controller, node }
    this.conversation = newConversation(this.settings.system);
    this.announcer = new Announcer();
  }

  async start() {
    setLanguage(this.settings.language);
    this.store = await openStore(this.options.store ?? "gangpao");
    await this.store.setKeep(this.settings.keep);
    this.store.onchange((id) => this.#changedElsewhere(id));
    this.build();
    document.addEventListener("keydown", (event) => this.#key(event));
    addEventListener("hashchange", () => this.#follow());
    const libraries = loadLibraries().then((problem) => this.#librariesCame(problem));
    await this.#follow();
    if (!this.store.kept) this.toast(t("notKept"));
    await this.loadModels();
    await libraries;
    document.body.dataset.ready = "true";
  }

  /** Everything anew: at the start and when the language changes. */
  build() {
    const draft = this.composer?.field.value ?? "";
    this.sidebar = new Sidebar({
      open: (id) => this.go(id), fresh: () => this.fresh(), rename: (id, title) => this.rename(id, title),
      remove: (id) => this.remove(id), settings: () => this.openSettings(), links: this.options.links?.() ?? [],
    });
    this.messages = new Messages({
      edit: (node, text) => this.edit(node, text), again: (node) => this.again(node),
      choose: (node, step) => this.choose(node, step), key: () => this.enterKey(),
    });
    this.composer = new Composer({ send: (content, files) => this.send(content, files), stop: () => this.stop(), problem: (text) => this.toast(text) });
    this.picker = h("select", { className: "picker", "aria-label": t("model"), onchange: () => this.pick(this.picker.value) });
    this.note = h("p", { className: "fine" });
    this.toasts = h("div", { className: "toasts", role: "status" });
    const menu = iconButton("menu", t("openList"), () => this.sidebar.toggle(), { className: "icon-button menu-button", "aria-controls": "sidebar", "aria-expanded": "false" });
    this.panel = this.options.panel?.(this) ?? null;
    const main = h("main", { className: "main" },
      h("header", { className: "top" }, menu, this.picker, h("span", { className: "space" }),
        iconButton("new", t("newConversation"), () => this.fresh(), { className: "icon-button narrow-only" })),
      this.panel, this.messages.element,
      h("div", { className: "bottom" }, this.messages.jump, this.composer.element, this.note));
    dropTarget(main, (files) => this.composer.add(files));
    this.root.replaceChildren(
      h("a", { className: "skip", href: "#question", textContent: t("skip"), onclick: (event) => {
        event.preventDefault();
        this.composer.field.focus();
      } }),
      this.sidebar.element,
      h("div", { className: "veil", onclick: () => this.sidebar.toggle(false) }),
      main,
      this.toasts, this.announcer.element);
    this.composer.fill(draft);
    this.#drawModels();
    this.#drawNote();
    this.show();
    this.drawList();
  }

  // --- models

  async loadModels() {
    try {
      this.models = await this.backend.models();
      this.problem = null;
    } catch (error) {
      this.problem = error instanceof ChatError ? error : new ChatError("server", String(error));
      if (this.problem.kind === "key" && (await askKey(this))) return this.loadModels();
    }
    this.#drawModels();
    return this.show();
  }

  #drawModels() {
    const known = this.models.some((model) => model.id === this.settings.model);
    this.model = known ? this.settings.model : (this.models[0]?.id ?? "");
    this.picker.replaceChildren(...this.models.map(({ id }) => h("option", { value: id, textContent: id })));
    this.picker.value = this.model;
    this.picker.hidden = this.models.length === 0;
    this.sidebar.showLink("/watch", this.models.some(({ sees }) => sees));
    this.composer.setSees(this.models.find(({ id }) => id === this.model)?.sees ?? false);
  }

  pick(id) {
    this.change({ model: id });
    this.#drawModels();
    this.show();
  }

  // --- settings

  change(changes) {
    Object.assign(this.settings, changes);
    saveSettings(this.settings);
    if ("theme" in changes) setTheme(changes.theme);
    if ("language" in changes) {
      setLanguage(changes.language);
      this.build();
    }
  }

  async setKeep(keep) {
    this.change({ keep });
    await this.store.setKeep(keep);
  }

  moreSettings() {
    const key = this.backend.name === "server" ? [this.#keySection()] : [];
    return [...key, ...(this.options.moreSettings?.(this) ?? [])];
  }

  #keySection() {
    return h("section", {}, h("h3", { textContent: t("server") }), h("button", { type: "button", className: "button", textContent: t("enterKey"), onclick: () => this.enterKey() }));
  }

  openSettings() {
    openSettings(this, this.moreSettings());
  }

  async enterKey() {
    if (await askKey(this)) await this.loadModels();
  }

  setSystem(text, always) {
    this.conversation.system = text;
    this.change({ system: always ? text : "" });
    if (path(this.conversation).length) this.#save(this.conversation);
  }

  // --- conversations

  go(id) {
    if (location.hash === `#${id}`) this.#follow();
    else location.hash = id;
  }

  fresh() {
    if (location.hash) history.pushState(null, "", location.pathname);
    this.conversation = newConversation(this.settings.system);
    this.#opened();
    this.composer.focus();
  }

  async #follow() {
    const id = location.hash.slice(1);
    const running = this.runs.get(id);
    const found = running ? running.conversation : id ? await this.store.get(id) : null;
    if (found && !running) closeOpenAnswers(found);
    this.conversation = found ?? newConversation(this.settings.system);
    this.#opened();
  }

  #opened() {
    this.messages.reset();
    this.show();
    this.drawList();
    if (document.body.classList.contains("list-open")) this.sidebar.toggle(false);
  }

  show() {
    const { conversation } = this;
    const run = this.runs.get(conversation.id);
    this.composer.setRunning(Boolean(run));
    document.title = conversation.title ? `${conversation.title} · gangpao` : "gangpao";
    if (path(conversation).length) return this.messages.show(conversation, run?.node.id);
    const trouble = this.problem ? errorText(this.problem) : "";
    const title = t(this.options.greeting ?? "greeting");
    const examples = trouble || this.composer.blocked ? [] : [1, 2, 3, 4].map((n) => t(`example${n}`));
    const view = greeting(title, trouble, examples, (text) => this.send(text));
    if (trouble) view.append(h("button", { type: "button", className: "button", textContent: t("tryAgain"), onclick: () => this.loadModels() }));
    return this.messages.list.replaceChildren(view);
  }

  async drawList() {
    this.sidebar.show(await this.store.all(), this.conversation.id);
  }

  async #save(conversation) {
    conversation.updated = Date.now();
    try {
      await this.store.put(structuredClone(conversation));
    } catch (error) {
      this.toast(t("notSaved", { why: error.name }));
    }
  }

  async #changedElsewhere(id) {
    await this.drawList();
    if (id !== this.conversation.id || this.runs.has(id)) return;
    this.conversation = (await this.store.get(id)) ?? newConversation(this.settings.system);
    this.show();
  }

  async rename(id, title) {
    const found = id === this.conversation.id ? this.conversation : await this.store.get(id);
    found.title = title;
    await this.store.put(structuredClone(found));
    this.show();
    await this.drawList();
  }

  async remove(id) {
    const gone = await this.store.get(id);
    this.#drop(this.runs.get(id));
    await this.store.remove(id);
    if (id === this.conversation.id) this.fresh();
    await this.drawList();
    this.toast(t("deleted"), t("undo"), async () => {
      await this.store.put(gone);
      await this.drawList();
    });
  }

  /** End an answer whose conversation goes away, so that it does not come back with its last words. */
  #drop(run) {
    if (!run) return;
    run.removed = true;
    run.controller.abort();
  }

  async removeAll() {
    for (const run of this.runs.values()) this.#drop(run);
    await this.store.clear();
    this.fresh();
  }

  async importFile(file) {
    try {
      if (file.size > MAX_IMPORT) throw new Error("too large");
      const raw = JSON.parse(await file.text());
      if (raw?.format !== "gangpao-conversations" || !Array.isArray(raw.conversations)) throw new Error("not ours");
      const found = raw.conversations.map(checked);
      for (const one of found) await this.store.put(one);
      this.toast(t("imported", { n: found.length }));
    } catch {
      this.toast(t("notImported", { name: file.name }));
    }
    await this.drawList();
  }

  // --- asking

  async send(content, files = []) {
    const { conversation } = this;
    if (this.composer.blocked || this.runs.has(conversation.id)) return;
    const last = path(conversation).at(-1);
    await this.#ask(conversation, append(conversation, last?.id ?? "", "user", content, files.length ? { files } : {}));
  }

  async edit(node, text) {
    await this.#ended();
    const kept = typeof node.content === "string" ? text : [...node.content.filter((part) => part.type !== "text"), { type: "text", text }];
    await this.#ask(this.conversation, append(this.conversation, node.parent, "user", kept, node.files ? { files: node.files } : {}));
  }

  async again(node) {
    await this.#ended();
    const { nodes } = this.conversation;
    await this.#ask(this.conversation, nodes[node.parent]);
  }

  choose(node, step) {
    const id = choose(this.conversation, node.id, step);
    this.show();
    this.#save(this.conversation);
    this.messages.list.querySelector(`[data-id="${id}"] .branch button:not(:disabled)`)?.focus();
  }

  stop() {
    this.runs.get(this.conversation.id)?.controller.abort();
  }

  /** Stop what is being written here, and wait until it has stopped. */
  async #ended() {
    this.stop();
    await this.runs.get(this.conversation.id)?.ended;
  }

  /** Ask the question and write the answer under it, until it ends, fails or is stopped. */
  async #ask(conversation, question) {
    const controller = new AbortController();
    const node = append(conversation, question.id, "assistant", "", { model: this.model, finish: "open" });
    const run = { controller, node, conversation, started: performance.now(), removed: false };
    run.ended = this.#answer(run, question);
    await run.ended;
  }

  async #answer(run, question) {
    const { conversation, node, controller } = run;
    this.runs.set(conversation.id, run);
    conversation.title ||= titleOf(conversation);
    if (conversation === this.conversation && location.hash !== `#${conversation.id}`) history.pushState(null, "", `#${conversation.id}`);
    this.messages.pinned = true;
    this.announcer.begin();
    this.show();
    await this.#save(conversation);
    await this.drawList();
    try {
      await this.#receive(run, question);
    } catch (error) {
      if (controller.signal.aborted) node.finish = "stopped";
      else {
        node.finish = "error";
        node.error = { kind: error.kind ?? "server", message: error.message, retryAfter: error.retryAfter ?? 0 };
      }
    }
    clearTimeout(run.timer);
    this.runs.delete(conversation.id);
    if (run.removed) return;
    if (conversation === this.conversation) {
      this.announcer.follow(node.content, true);
      this.announcer.say(node.error ? errorText(node.error) : t(node.finish === "stopped" ? "stopped" : "answerDone"));
      this.show();
    }
    await this.#save(conversation);
    await this.drawList();
  }

  async #receive(run, question) {
    const { conversation, node, controller } = run;
    const turns = path(conversation, question.id);
    // A question that got no word of an answer is forgotten: templates want questions and answers to take turns.
    const silent = (index) => turns[index]?.role === "assistant" && !textOf(turns[index].content);
    const messages = turns.filter((_, index) => !silent(index) && !silent(index + 1)).map(({ role, content, files }) => ({ role, content: asRead(content, files) }));
    if (conversation.system) messages.unshift({ role: "system", content: conversation.system });
    const request = { model: this.model, messages, params: this.settings.params };
    const known = {};
    let first = 0;
    let words = 0;
    for await (const part of this.backend.chat(request, controller.signal)) {
      if (part.text || part.thought) {
        first ||= performance.now();
        if (part.text) words ||= performance.now();
        if (part.thought && !node.thought) this.announcer.say(t("thinking"));
        if (part.thought) node.thought = (node.thought ?? "") + part.thought;
        node.content += part.text ?? "";
        this.#grown(run);
      }
      if (part.finish) node.finish = part.finish;
      Object.assign(known, part);
    }
    if (node.finish === "open") node.finish = controller.signal.aborted ? "stopped" : "stop";
    node.stats = measure(known, run.started, first);
    if (node.thought) node.stats.thought = ((words || performance.now()) - first) / 1000;
  }

  /** Draw at most once a frame, save at most once a second. */
  #grown(run) {
    if (run.frame) return;
    run.frame = requestAnimationFrame(() => {
      run.frame = 0;
      if (run.conversation === this.conversation && this.runs.get(run.conversation.id) === run) {
        this.messages.grow(run.node);
        this.announcer.follow(run.node.content);
      }
    });
    run.timer ||= setTimeout(() => {
      run.timer = 0;
      if (!run.removed) this.#save(run.conversation);
    }, SAVE_MS);
  }

  // --- the rest

  #librariesCame(problem) {
    this.plain = problem;
    this.messages.reset();
    this.show();
    this.#drawNote();
  }

  #drawNote() {
    this.note.replaceChildren(h("span", { textContent: t(this.options.fine ?? "fine") }));
    if (this.plain) this.note.append(h("span", { className: "plain-note", title: this.plain, textContent: ` ${t("plainText")}` }));
  }

  /** A short message at the edge, with one thing to do about it. */
  toast(text, label = "", act = null) {
    const close = () => box.remove();
    const box = h("div", { className: "toast" }, h("span", { textContent: text }), label ? h("button", { type: "button", className: "quiet", textContent: label, onclick: () => {
      close();
      act();
    } }) : null);
    this.toasts.append(box);
    setTimeout(close, UNDO_MS);
  }

  #key(event) {
    const typing = event.target.closest?.("input, textarea, select, dialog");
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
      if (document.body.classList.contains("list-open")) this.sidebar.toggle(false);
      else this.stop();
    } else if ((event.ctrlKey || event.metaKey) && event.key === "k") {
      event.preventDefault();
      if (matchMedia("(max-width: 800px)").matches) this.sidebar.toggle(true);
      this.sidebar.search.focus();
    } else if (event.altKey && event.code === "KeyN") {
      event.preventDefault();
      this.fresh();
    } else if (!typing && event.key === "/") {
      event.preventDefault();
      this.composer.field.focus();
    } else if (!typing && event.key === "?") openHelp();
  }
}

/** Tokens, tokens a second, seconds to the first, and yuan: the server's own figures where it gives them. */
function measure({ usage, timings }, started, first) {
  const seconds = (performance.now() - (first || performance.now())) / 1000;
  const tokens = usage?.completion_tokens ?? timings?.predicted_n ?? 0;
  const tps = timings?.decode_tps ?? timings?.predicted_per_second ?? (seconds > 0 ? Math.max(0, tokens - 1) / seconds : 0);
  const stats = { tokens, tps, first: first ? (first - started) / 1000 : 0, yuan: timings?.yuan ?? 0 };
  return Object.fromEntries(Object.entries(stats).map(([name, value]) => [name, Number(value) || 0]));
}

/** What of a question goes to the model: files are quoted before its text. Thoughts of earlier answers stay here. */
function asRead(content, files) {
  if (typeof content === "string") return withFiles(content, files);
  return content.map((part) => (part.type === "text" ? { ...part, text: withFiles(part.text, files) } : part));
}

/** An answer that was being written when the page was left has stopped there. */
function closeOpenAnswers(conversation) {
  for (const node of Object.values(conversation.nodes)) if (node.finish === "open") node.finish = "stopped";
}
