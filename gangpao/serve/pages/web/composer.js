// Where a question is written. Enter sends, Shift+Enter makes a line, and an input method keeps its own Enter.

import { dialog, h, iconButton } from "./dom.js";
import { ACCEPT, MAX_FILES, readText, tag } from "./files.js";
import { t } from "./i18n.js";

const MAX_PIXELS = 1344 * 1344; // no small model looks closer; a long screenshot keeps its letters
const MAX_SIDE = 8192;
const MAX_IMAGES = 8;
const IMAGES = "image/png,image/jpeg,image/webp,image/gif";

export class Composer {
  /** `actions`: send(content, files), stop(), problem(text). content is a string, or parts where images are attached. */
  constructor(actions) {
    this.actions = actions;
    this.images = [];
    this.files = []; // { name, text }
    this.sees = false;
    this.running = false;
    this.field = h("textarea", {
      rows: 1, placeholder: t("ask"), "aria-label": t("ask"), enterkeyhint: "send", autocomplete: "off",
      oninput: () => this.#changed(), onkeydown: (event) => this.#key(event), onpaste: (event) => this.#paste(event),
    });
    const picker = (accept) => h("input", { type: "file", accept, multiple: true, hidden: true, onchange: (event) => this.#picked(event.target) });
    this.textPicker = picker(ACCEPT);
    this.imagePicker = picker(IMAGES);
    this.attachText = iconButton("clip", t("attachText"), () => this.textPicker.click());
    this.attach = iconButton("image", t("attach"), () => this.imagePicker.click());
    this.camera = iconButton("camera", t("camera"), () => this.#capture());
    this.button = iconButton("send", t("send"), () => this.press(), { className: "icon-button go" });
    this.thumbs = h("div", { className: "thumbs" });
    this.element = h("form", { className: "composer", onsubmit: (event) => event.preventDefault() },
      this.thumbs, this.field, h("div", { className: "row" }, this.attachText, this.attach, this.camera, this.textPicker, this.imagePicker, h("span", { className: "space" }), this.button));
    this.setSees(false);
    this.setRunning(false);
  }

  /** Whether the chosen model takes images; the buttons for them are there then only. */
  setSees(sees) {
    this.sees = sees;
    if (!sees && this.images.length) {
      this.images = [];
      this.#drawAttached();
      this.actions.problem(t("imagesTakenBack"));
    }
    this.attach.hidden = this.camera.hidden = !sees;
  }

  setRunning(running) {
    this.running = running;
    const label = t(running ? "stop" : "send");
    this.button.replaceChildren(iconButton(running ? "stop" : "send", "", () => {}).firstChild);
    this.button.setAttribute("aria-label", label);
    this.button.title = label;
    this.#changed();
  }

  setBlocked(why) {
    this.blocked = Boolean(why);
    this.field.placeholder = why || t("ask");
    this.#changed();
  }

  /** Put a text there. The field gets the focus where that does not open a keyboard over the page. */
  fill(text) {
    this.field.value = text;
    this.#changed();
    this.focus();
  }

  focus() {
    if (!matchMedia("(pointer: coarse)").matches) this.field.focus();
  }

  press() {
    if (this.running) return this.actions.stop();
    const text = this.field.value.trim();
    if (this.blocked || this.#empty) return this.field.focus();
    const parts = this.images.map((url) => ({ type: "image_url", image_url: { url } }));
    const content = parts.length ? [...parts, ...(text || this.files.length ? [{ type: "text", text }] : [])] : text;
    const { files } = this;
    this.field.value = "";
    this.images = [];
    this.files = [];
    this.#drawAttached();
    return this.actions.send(content, files);
  }

  get #empty() {
    return !this.field.value.trim() && !this.images.length && !this.files.length;
  }

  #changed() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, 240)}px`;
    this.button.disabled = !this.running && (this.#empty || this.blocked === true);
  }

  #key(event) {
    const composing = event.isComposing || event.keyCode === 229; // 229: Safari ends the composition before the key
    const touch = matchMedia("(pointer: coarse)").matches; // there Enter makes a line and the button sends
    if (event.key !== "Enter" || event.shiftKey || composing || touch) return;
    event.preventDefault();
    if (!this.running) this.press();
  }

  async #picked(picker) {
    const files = [...picker.files];
    picker.value = "";
    await this.add(files);
  }

  async #paste(event) {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    await this.add(files);
  }

  /** Attach files: images where the model sees, texts always. What cannot be attached is told. */
  async add(files) {
    for (const file of files) {
      try {
        await (file.type.startsWith("image/") ? this.#addImage(file) : this.#addText(file));
      } catch (error) {
        this.actions.problem(error.message);
      }
    }
    this.#drawAttached();
    this.focus();
  }

  async #addImage(file) {
    if (!this.sees) throw new Error(t("noImages", { name: file.name }));
    if (this.images.length >= MAX_IMAGES) throw new Error(t("tooManyFiles", { n: MAX_IMAGES }));
    const bitmap = await createImageBitmap(file).catch(() => {
      throw new Error(t("badImage", { name: file.name }));
    });
    this.images.push(shrunk(bitmap, bitmap.width, bitmap.height));
    bitmap.close();
  }

  async #addText(file) {
    if (this.files.length >= MAX_FILES) throw new Error(t("tooManyFiles", { n: MAX_FILES }));
    this.files.push(await readText(file));
  }

  #drawAttached() {
    const remove = (list, one) => () => {
      list.splice(list.indexOf(one), 1);
      this.#drawAttached();
    };
    this.thumbs.replaceChildren(
      ...this.images.map((url) => h("div", { className: "thumb" }, h("img", { src: url, alt: t("attachedImage") }), iconButton("close", t("removeImage"), remove(this.images, url)))),
      ...this.files.map((file) => tag(file, remove(this.files, file))));
    this.#changed();
  }

  async #capture() {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch {
      this.actions.problem(t(globalThis.isSecureContext ? "noCamera" : "cameraNeedsHttps"));
      return;
    }
    const video = h("video", { autoplay: true, playsinline: true, muted: true });
    video.srcObject = stream;
    const shoot = h("button", { type: "button", className: "button primary", textContent: t("takePhoto"), onclick: () => {
      this.images.push(shrunk(video, video.videoWidth, video.videoHeight));
      this.#drawAttached();
      box.close();
    } });
    const box = dialog(t("camera"), t("close"), video, h("div", { className: "row end" }, shoot));
    box.classList.add("camera");
    box.addEventListener("close", () => stream.getTracks().forEach((track) => track.stop()));
  }
}

/** A picture as a JPEG data URL of at most MAX_PIXELS, over white where it is transparent, and without what a camera noted in it. */
function shrunk(source, width, height) {
  const scale = Math.min(1, MAX_SIDE / Math.max(width, height), Math.sqrt(MAX_PIXELS / (width * height)));
  const canvas = h("canvas", { width: Math.max(1, Math.floor(width * scale)), height: Math.max(1, Math.floor(height * scale)) });
  const paper = canvas.getContext("2d");
  paper.fillStyle = "#fff";
  paper.fillRect(0, 0, canvas.width, canvas.height);
  paper.imageSmoothingQuality = "high";
  paper.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.9);
}
