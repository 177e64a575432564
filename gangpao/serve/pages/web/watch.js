// The page at /watch: frames of a camera or a video, a sentence for each that is new, and answers about what was seen.
//
// One frame is with the server at a time; the next one is what the camera shows then, so nothing queues up. How far the sentence is
// behind its frame is shown. Questions are answered from the sentences, which is text only, or with the picture of that moment.

import { ServerBackend } from "./backend-server.js";
import { download, h, iconButton } from "./dom.js";
import { Changes, frameOf } from "./frames.js";
import { errorText, setLanguage, t } from "./i18n.js";
import { canListen, canSpeak, listen, silence, speak } from "./speech.js";
import { loadSettings } from "./store.js";

const SIDE = 448; // frames are sent with SIDE x SIDE pixels in all: one slice of MiniCPM-V
const MAX_LINES = 500;
const MAX_TEXT = 8000; // characters of the log that go with a question
const LOG = "gangpao.watch";
const TOKENS = 64;
const WAITS = new Set(["busy", "loading"]); // what passes by itself

class Watch {
  constructor(root) {
    this.root = root;
    this.settings = loadSettings();
    this.backend = new ServerBackend(this.settings);
    this.lines = this.#kept(); // { at, text, behind } or { at, asked, text }
    this.changes = new Changes();
    this.unchanged = 0;
  }

  async start() {
    setLanguage(this.settings.language);
    this.#build();
    try {
      const models = (await this.backend.models()).filter(({ sees }) => sees);
      this.picker.replaceChildren(...models.map(({ id }) => h("option", { value: id, textContent: id })));
      if (models.some(({ id }) => id === this.settings.model)) this.picker.value = this.settings.model;
      this.picker.hidden = models.length === 0;
      this.go.disabled = this.file.disabled = models.length === 0;
      if (!models.length) this.#trouble(t("watchNoModel"));
    } catch (error) {
      this.#trouble(why(error));
    }
    document.body.dataset.ready = "true";
  }

  #build() {
    this.picker = h("select", { className: "picker", "aria-label": t("model"), hidden: true });
    this.state = h("span", { className: "behind", role: "status" });
    this.video = h("video", { autoplay: true, playsinline: true, muted: true, "aria-label": t("watchPicture") });
    this.video.muted = true; // the attribute alone does not do it for an element that a script made
    this.go = h("button", { type: "button", className: "button primary", disabled: true, textContent: t("watchStart"), onclick: () => (this.running ? this.#stop() : this.#camera()) });
    this.file = h("input", { type: "file", accept: "video/*", hidden: true, onchange: () => this.#play(this.file.files[0]) });
    this.every = h("select", {}, [1, 2, 5, 10, 30].map((n) => h("option", { value: String(n), textContent: t("watchSeconds", { n }) })));
    this.prompt = h("input", { type: "text", value: t("watchPrompt"), maxlength: "500" });
    this.aloud = h("input", { type: "checkbox", onchange: () => silence() });
    this.problem = h("p", { className: "trouble", role: "alert", hidden: true });
    this.list = h("ol", { className: "lines", role: "log", "aria-label": t("watchLog"), tabindex: "0" });
    this.field = h("input", { type: "text", placeholder: t("watchAsk"), "aria-label": t("watchAsk"), autocomplete: "off", enterkeyhint: "send", maxlength: "2000" });
    this.now = h("input", { type: "checkbox" });
    this.ear = h("button", { type: "button", className: "button", hidden: !canListen, textContent: t("watchListen"), onclick: () => this.#listen() });
    this.send = iconButton("send", t("send"), () => {}, { type: "submit" });
    this.root.replaceChildren(
      h("header", { className: "top" }, h("h1", { textContent: t("watchTitle") }), this.picker, this.state, h("span", { className: "space" }),
        iconButton("save", t("watchSave"), () => this.#save()), iconButton("delete", t("watchForget"), () => this.#forget()),
        h("a", { className: "quiet", href: "/", textContent: t("watchBack") })),
      h("section", { className: "eye" }, this.problem, this.video,
        h("div", { className: "row wrap" }, this.go, h("button", { type: "button", className: "button", textContent: t("watchFile"), onclick: () => this.file.click() }), this.file),
        h("label", {}, t("watchEvery"), this.every), h("label", {}, t("watchPromptLabel"), this.prompt),
        canSpeak ? h("label", { className: "check" }, this.aloud, t("watchAloud")) : null),
      h("main", { className: "told" }, this.list,
        h("form", { className: "question", onsubmit: (event) => { event.preventDefault(); this.#ask(this.field.value.trim()); } },
          this.field, this.ear, h("label", { className: "check" }, this.now, t("watchNow")), this.send)));
    this.#draw();
  }

  // --- what is looked at

  async #camera() {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch {
      return this.#trouble(t(globalThis.isSecureContext ? "noCamera" : "cameraNeedsHttps"));
    }
    stream.getTracks().forEach((track) => track.addEventListener("ended", () => this.#stop()));
    this.video.srcObject = stream;
    return this.#watch();
  }

  #play(file) {
    this.file.value = "";
    if (!file) return undefined;
    this.#stop();
    this.url = URL.createObjectURL(file);
    this.video.src = this.url;
    this.video.addEventListener("ended", () => this.#stop(), { once: true });
    this.video.addEventListener("error", () => {
      if (!this.url) return; // it was taken away, not broken
      this.#trouble(t("watchBadVideo", { name: file.name }));
      this.#stop();
    }, { once: true });
    return this.#watch();
  }

  #stop() {
    this.running?.abort();
    this.running = null;
    this.video.srcObject?.getTracks().forEach((track) => track.stop());
    this.video.srcObject = null;
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = null;
    this.video.removeAttribute("src");
    this.go.textContent = t("watchStart");
    this.state.textContent = "";
    silence();
  }

  /** Until it is stopped: a frame every so many seconds, described where it is new. */
  async #watch() {
    const { signal } = (this.running = new AbortController());
    this.go.textContent = t("watchStop");
    this.problem.hidden = true;
    this.changes = new Changes();
    await this.video.play().catch(() => {}); // stopped before it began
    let due = performance.now();
    while (!signal.aborted) {
      const taken = performance.now();
      const frame = frameOf(this.video, SIDE);
      if (frame && this.changes.seen(this.video)) await this.#describe(frame, taken, signal);
      else if (frame) this.state.textContent = t("watchUnchanged", { n: (this.unchanged += 1) });
      due = Math.max(due + (frame ? Number(this.every.value) * 1000 : 100), performance.now());
      await pause(due - performance.now(), signal);
    }
  }

  async #describe(frame, taken, signal) {
    const at = new Date(Date.now() - (performance.now() - taken));
    const ticking = setInterval(() => this.#behind(taken), 200);
    try {
      const text = await this.#answer([{ role: "user", content: [picture(frame), { type: "text", text: this.prompt.value.trim() || t("watchPrompt") }] }], signal);
      const behind = this.#behind(taken);
      this.#tell({ at: at.toISOString(), text, behind });
      if (this.aloud.checked) speak(text);
    } catch (error) {
      if (signal.aborted) return;
      if (!WAITS.has(error.kind)) this.#stop();
      this.#trouble(why(error));
      this.changes = new Changes(); // this frame was not described
      if (WAITS.has(error.kind)) await pause((error.retryAfter || 5) * 1000, signal);
    } finally {
      clearInterval(ticking);
    }
  }

  #behind(taken) {
    const seconds = Math.round((performance.now() - taken) / 100) / 10;
    this.state.textContent = t("watchBehind", { n: seconds.toFixed(1) });
    return seconds;
  }

  /** The whole answer to messages, on one line. */
  async #answer(messages, signal, follow = () => {}) {
    let text = "";
    const request = { model: this.picker.value, messages, params: { max_tokens: TOKENS, temperature: 0 } };
    for await (const piece of this.backend.chat(request, signal)) {
      if (piece.text) follow((text += piece.text));
    }
    this.problem.hidden = true;
    return text.replace(/\s+/g, " ").trim();
  }

  // --- what was seen, and questions about it

  async #ask(question) {
    if (!question || this.asking || !this.picker.value) return;
    const { signal } = (this.asking = new AbortController());
    const frame = this.now.checked ? frameOf(this.video, SIDE) : null;
    const seen = this.#text() || t("watchNothing");
    this.field.value = "";
    const line = { at: new Date().toISOString(), asked: question, text: "…" };
    const shown = this.#tell(line);
    try {
      const content = frame ? [picture(frame), { type: "text", text: question }] : question;
      line.text = await this.#answer([{ role: "system", content: `${t("watchSystem")}\n\n${seen}` }, { role: "user", content }], signal, (text) => { shown.textContent = text; });
      if (this.aloud.checked) speak(line.text);
    } catch (error) {
      line.text = why(error);
    }
    shown.textContent = line.text;
    this.asking = null;
    this.#keep();
  }

  async #listen() {
    if (this.hearing) return this.hearing.abort();
    this.hearing = new AbortController();
    this.ear.classList.add("listening");
    silence(); // or it hears itself
    try {
      await this.#ask(await listen(this.hearing.signal));
    } catch {
      this.#trouble(t("watchDeaf"));
    }
    this.ear.classList.remove("listening");
    this.hearing = null;
    return undefined;
  }

  /** The newest lines that fit, with their times. */
  #text() {
    const found = [];
    let left = MAX_TEXT;
    for (const { at, text, asked } of [...this.lines].reverse()) {
      if (asked) continue;
      const line = `[${clock(at)}] ${text}`;
      left -= line.length + 1;
      if (left < 0) break;
      found.unshift(line);
    }
    return found.join("\n");
  }

  /** Add a line; gives the element of its text. */
  #tell(line) {
    this.lines.push(line);
    const dropped = this.lines.length - MAX_LINES;
    if (dropped > 0) this.lines.splice(0, dropped);
    const atEnd = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 60;
    if (this.list.querySelector(".none") || dropped > 0) this.#draw();
    else this.list.append(...items(line));
    if (atEnd) this.list.scrollTop = this.list.scrollHeight;
    this.#keep();
    return this.list.lastElementChild.querySelector(".text");
  }

  #draw() {
    this.list.replaceChildren(...(this.lines.length ? this.lines.flatMap(items) : [h("li", { className: "none", textContent: t("watchEmpty") })]));
    this.list.scrollTop = this.list.scrollHeight;
  }

  #kept() {
    try {
      const found = JSON.parse(localStorage.getItem(LOG) ?? "[]");
      return Array.isArray(found) ? found.filter((line) => typeof line?.text === "string" && typeof line.at === "string") : [];
    } catch {
      return []; // storage is forbidden, or holds something else
    }
  }

  #keep() {
    if (!this.settings.keep) return;
    try {
      localStorage.setItem(LOG, JSON.stringify(this.lines));
    } catch {
      this.settings.keep = false; // storage is full or forbidden: the lines last as long as the page
    }
  }

  #save() {
    download("watch.jsonl", "application/jsonl", this.lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
  }

  #forget() {
    this.lines = [];
    this.#draw();
    this.#keep();
  }

  #trouble(text) {
    this.problem.textContent = text;
    this.problem.hidden = false;
  }
}

/** What happened; an error that is not the server's speaks for itself. */
function why(error) {
  return error.kind ? errorText(error) : String(error.message ?? error);
}

function picture(url) {
  return { type: "image_url", image_url: { url } };
}

/** The list items of a line: what was seen with its time, or a question and its answer. */
function items({ at, text, behind, asked }) {
  if (asked) return [h("li", { className: "asked", textContent: asked }), h("li", { className: "answer" }, h("span", { className: "text", textContent: text }))];
  return [h("li", {}, h("time", { datetime: at, textContent: clock(at) }), h("span", { className: "text", textContent: text }), h("small", { textContent: t("watchBehind", { n: Number(behind).toFixed(1) }) }))];
}

function clock(at) {
  return new Date(at).toLocaleTimeString("en-GB");
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const timer = setTimeout(resolve, Math.max(0, milliseconds));
    return signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

new Watch(document.getElementById("app")).start();
