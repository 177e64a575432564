// The page at /phone: get a model once, then talk with it on this device, with or without a network.

import { App } from "./app.js";
import { DeviceBackend, defaultThreads, lacking, libraryFiles, memoryNeeded } from "./backend-device.js";
import { ModelStore, freeStorage } from "./model-store.js";
import { h } from "./dom.js";
import { bytes, errorText, t } from "./i18n.js";
import { askKey, choice, confirmed, section } from "./settings.js";

const POLL_MS = 1500;
const SHELL = "gangpao-shell";

/** The part of the page above the messages: models, download, and what stands in the way. */
class DevicePanel {
  constructor(app) {
    this.app = app;
    this.modelStore = new ModelStore(() => (app.settings.key ? { Authorization: `Bearer ${app.settings.key}` } : {}));
    this.element = h("section", { className: "device", "aria-label": t("device") });
    this.status = h("p", { role: "status" });
    this.models = []; // { model, have }
    this.trouble = "";
    this.download = null; // { model, controller, done, rate }
    this.loading = "";
    this.how = "";
    this.kept = true; // whether the page outlives the network
    this.authority = false; // whether the server has a certificate to install
  }

  get backend() {
    return this.app.backend;
  }

  async start() {
    const lacks = lacking();
    if (!globalThis.isSecureContext || !("caches" in globalThis)) this.trouble = t("deviceInsecure");
    else if (lacks) this.trouble = t("deviceOld", { what: lacks });
    this.draw();
    if (this.trouble) return;
    this.#keepPage();
    await this.refresh();
    const last = this.models.find(({ model, have }) => model.name === this.app.settings.device.last && have === model.bytes);
    if (last) await this.load(last.model);
  }

  /** The server's models and those that are here, each once. */
  async refresh() {
    const kept = await this.modelStore.kept();
    let offers = null;
    let why = "error_network";
    try {
      offers = await this.modelStore.offers();
    } catch {
      if (await askKey(this.app)) return this.refresh();
      why = "error_key";
    }
    const known = [...(offers ?? []), ...kept.filter((one) => !offers?.some((other) => other.name === one.name))];
    this.models = await Promise.all(known.map(async (model) => ({ model, have: await this.modelStore.have(model) })));
    this.trouble = this.models.length ? "" : t(offers ? "deviceNoModels" : why);
    return this.draw();
  }

  /** Keep the page itself. Browsers refuse that behind a certificate they do not trust. */
  async #keepPage() {
    try {
      navigator.serviceWorker.addEventListener("message", (event) => {
        if (event.data === "updated") this.app.toast(t("deviceUpdate"), t("deviceUpdateNow"), () => location.reload());
      });
      await navigator.serviceWorker.register("/phone/app/sw.js", { scope: "/phone" });
      const { active } = await navigator.serviceWorker.ready;
      active.postMessage("refresh");
    } catch {
      this.kept = false;
      this.authority = await fetch("/ca.crt", { method: "HEAD" }).then((found) => found.ok, () => false);
    }
    this.draw();
  }

  // --- what is done

  async get(model) {
    const free = await freeStorage();
    const have = await this.modelStore.have(model);
    if (free < model.bytes - have) {
      this.#fail(t("deviceFull", { size: bytes(model.bytes), free: bytes(free) }));
      return;
    }
    await navigator.storage?.persist?.(); // else a browser short of space may drop the model
    const controller = new AbortController();
    this.download = { model, controller, done: have, rate: 0, started: performance.now(), first: have };
    this.trouble = "";
    this.draw();
    try {
      await this.modelStore.fetch(model, (done) => this.#progress(done), controller.signal);
      this.download = null;
      await this.refresh();
      await this.load(model);
    } catch (error) {
      this.download = null;
      await this.refresh();
      if (!controller.signal.aborted) this.#fail(await this.#reason(error, model));
    }
  }

  async #reason(error, model) {
    if (error.kind === "full") return t("deviceFull", { size: bytes(model.bytes), free: bytes(await freeStorage()) });
    return t("deviceFailed", { why: error.kind === "network" ? t("error_network") : error.kind === "key" ? t("error_key") : error.message });
  }

  #progress(done) {
    const { download } = this;
    if (!download) return;
    const seconds = (performance.now() - download.started) / 1000;
    Object.assign(download, { done, rate: seconds > 0.2 ? (done - download.first) / seconds : 0 });
    download.frame ||= requestAnimationFrame(() => {
      download.frame = 0;
      if (this.download === download && this.bar) {
        this.bar.value = download.done;
        this.line.textContent = this.#progressText();
      }
    });
  }

  #progressText() {
    const { done, rate, model } = this.download;
    return t("deviceProgress", { done: bytes(done), size: bytes(model.bytes), rate: bytes(rate) });
  }

  async load(model) {
    this.loading = t("deviceLoading");
    this.trouble = "";
    this.draw();
    try {
      await this.#library();
      const blobs = await this.modelStore.open(model);
      if (!blobs) throw new Error(t("error_device"));
      const { threads } = await this.backend.load(model, blobs);
      this.how = threads > 1 ? t("deviceThreads", { n: threads }) : t("deviceOneThread");
      this.app.change({ device: { ...this.app.settings.device, last: model.name } });
    } catch (error) {
      this.trouble = error.kind ? errorText(error) : error.message;
    }
    this.loading = "";
    this.draw();
    await this.app.loadModels();
  }

  /** Wait until the server has the browser library, and keep it: the model needs it without a network too. */
  async #library() {
    const cache = await caches.open(SHELL);
    const missing = [];
    for (const url of libraryFiles()) if (!(await cache.match(url))) missing.push(url);
    if (!missing.length) return;
    for (;;) {
      const state = await (await fetch("/web/parts?for=phone", { method: "POST" })).json();
      if (state.ready) break;
      if (state.problem) throw new Error(t("deviceNoLibrary", { why: state.problem }));
      this.loading = t("deviceFetching");
      this.draw();
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    this.loading = t("deviceLoading");
    this.draw();
    await cache.addAll(missing);
  }

  async unload() {
    await this.backend.unload();
    this.app.change({ device: { ...this.app.settings.device, last: "" } });
    await this.refresh();
    await this.app.loadModels();
  }

  remove(model) {
    confirmed(t("deviceDeleteSure", { name: model.name, size: bytes(model.bytes) }), t("deviceDelete"), async () => {
      if (this.backend.loaded?.name === model.name) await this.unload();
      await this.modelStore.remove(model);
      await this.refresh();
    });
  }

  #fail(text) {
    this.trouble = text;
    this.draw();
  }

  // --- what is seen

  draw() {
    const { loaded } = this.backend;
    const working = this.loading || this.download;
    this.app.composer?.setBlocked(loaded ? "" : t("deviceWait"));
    this.element.className = loaded ? "device ready" : "device";
    this.status.textContent = this.loading || (loaded ? t("deviceReady", { how: this.how }) : "");
    this.element.replaceChildren(...[
      loaded || this.trouble ? null : h("p", { className: "hint", textContent: t("deviceIntro") }),
      this.trouble ? h("p", { className: "error", role: "alert", textContent: this.trouble }) : null,
      this.status,
      this.kept ? null : this.#notKept(),
      ...(loaded || this.loading ? [] : this.models.map((one) => this.#card(one, Boolean(working)))),
    ].filter(Boolean));
    if (this.app.messages && !Object.keys(this.app.conversation.nodes).length) this.app.show();
  }

  /** What is lost without a service worker, and what helps. */
  #notKept() {
    const link = h("a", { href: "/ca.crt", textContent: t("deviceAuthority") });
    return h("p", { className: "note", role: "note" }, t("deviceNoWorker"), ...(this.authority ? [" ", link] : []));
  }

  #card({ model, have }, working) {
    const complete = have === model.bytes;
    const mine = this.download?.model.name === model.name;
    const button = (text, onclick, kind = "") => h("button", { type: "button", className: `button ${kind}`, textContent: text, onclick, disabled: working && !mine });
    const act = mine ? button(t("deviceStop"), () => this.download.controller.abort())
      : complete ? button(t("deviceLoad"), () => this.load(model), "primary")
        : button(t("deviceDownload", { size: bytes(model.bytes - have) }), () => this.get(model), "primary");
    const card = h("div", { className: "card", dataset: { model: model.name } },
      h("div", {}, h("h2", { textContent: model.name }), h("p", { className: "hint", textContent: bytes(model.bytes) })),
      h("div", { className: "row" }, have && !mine ? button(t("deviceDelete"), () => this.remove(model), "danger") : null, act));
    const short = memoryShort(model);
    if (short) card.append(h("p", { className: "note", textContent: short }));
    if (mine) card.append(...this.#bar(model));
    return card;
  }

  #bar(model) {
    this.bar = h("progress", { max: model.bytes, value: this.download.done, "aria-label": model.name });
    this.line = h("p", { className: "hint", textContent: this.#progressText() });
    return [this.bar, this.line];
  }

  settings() {
    const { settings, backend } = this.app;
    const { device } = settings;
    const most = globalThis.crossOriginIsolated ? navigator.hardwareConcurrency || 1 : 1;
    const change = (changes) => {
      this.app.change({ device: { ...settings.device, ...changes } });
      if (backend.loaded) this.load(backend.loaded);
    };
    const threads = Array.from({ length: most }, (_, index) => String(index + 1));
    const button = (text, onclick, kind = "") => h("button", { type: "button", className: `button ${kind}`, textContent: text, onclick: () => {
      document.querySelector("dialog[open]")?.close();
      onclick();
    } });
    return [section(t("device"),
      choice(t("deviceThreadsLabel"), threads, String(device.threads ?? defaultThreads()), (value) => change({ threads: Number(value) }), Object.fromEntries(threads.map((n) => [n, n]))),
      navigator.gpu ? choice(t("deviceAccelerator"), ["off", "on"], device.gpu ? "on" : "off", (value) => change({ gpu: value === "on" })) : null,
      backend.loaded ? h("div", { className: "row wrap" }, button(t("deviceUnload"), () => this.unload()),
        button(t("deviceDelete"), () => this.remove(backend.loaded), "danger")) : null)];
  }
}

/** A warning where the browser says how much memory there is, and it is little; "" otherwise. */
function memoryShort(model) {
  const have = navigator.deviceMemory; // GB, rounded, 8 at most; only Chrome tells
  const need = memoryNeeded(model);
  return have && need > (have * 1e9) / 2 ? t("deviceMemoryShort", { have, need: bytes(need) }) : "";
}

let panel = null;
const app = new App(document.getElementById("app"), (settings) => new DeviceBackend(settings), {
  store: "gangpao-phone",
  greeting: "deviceGreeting",
  fine: "deviceFine",
  links: () => [],
  panel: (made) => {
    panel ??= new DevicePanel(made);
    queueMicrotask(() => panel.draw()); // the composer it blocks is built a line later
    return panel.element;
  },
  moreSettings: () => panel.settings(),
});
await app.start();
await panel.start();
document.body.dataset.device = "true";
