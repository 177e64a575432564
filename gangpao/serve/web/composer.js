// Where a question is written. Enter sends, Shift+Enter makes a line, and an input method keeps its own Enter.

import { dialog, h, iconButton } from "./dom.js";
import { t } from "./i18n.js";

const MAX_SIDE = 1344; // pixels; no small model looks closer
const MAX_IMAGES = 8;

export class Composer {
  /** `actions`: send(content), stop(). content is a string, or parts where images are attached. */
  constructor(actions) {
    this.actions = actions;
    this.images = [];
    this.sees = false;
    this.running = false;
    this.field = h("textarea", {
      rows: 1, placeholder: t("ask"), "aria-label": t("ask"), enterkeyhint: "send", autocomplete: "off",
      oninput: () => this.#changed(), onkeydown: (event) => this.#key(event), onpaste: (event) => this.#paste(event),
    });
    this.file = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp", multiple: true, hidden: true, onchange: () => this.#take() });
    this.attach = iconButton("image", t("attach"), () => this.sees && this.file.click());
    this.camera = iconButton("camera", t("camera"), () => this.sees && this.#capture());
    this.button = iconButton("send", t("send"), () => this.press(), { className: "icon-button go" });
    this.thumbs = h("div", { className: "thumbs" });
    this.reason = h("span", { id: "no-images", className: "offscreen" });
    this.element = h("form", { className: "composer", onsubmit: (event) => event.preventDefault() },
      this.thumbs, this.field, h("div", { className: "row" }, this.attach, this.camera, this.reason, this.file, h("span", { className: "space" }), this.button));
    this.setSees(false);
    this.setRunning(false);
  }

  /** Whether the chosen model takes images. */
  setSees(sees) {
    this.sees = sees;
    this.reason.textContent = sees ? "" : t("noImages");
    for (const [button, label] of [[this.attach, t("attach")], [this.camera, t("camera")]]) {
      // Not `disabled`: a disabled button cannot be reached, and then nobody learns why.
      button.setAttribute("aria-disabled", String(!sees));
      button.title = sees ? label : `${label}: ${t("noImages")}`;
      if (sees) button.removeAttribute("aria-describedby");
      else button.setAttribute("aria-describedby", "no-images");
    }
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
    if (this.blocked || (!text && !this.images.length)) return this.field.focus();
    const parts = this.images.map((url) => ({ type: "image_url", image_url: { url } }));
    const content = parts.length ? [...parts, { type: "text", text }] : text;
    this.field.value = "";
    this.images = [];
    this.#drawThumbs();
    this.#changed();
    return this.actions.send(content);
  }

  #changed() {
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, 240)}px`;
    const empty = !this.field.value.trim() && !this.images.length;
    this.button.disabled = !this.running && (empty || this.blocked === true);
  }

  #key(event) {
    const composing = event.isComposing || event.keyCode === 229; // 229: Safari ends the composition before the key
    const touch = matchMedia("(pointer: coarse)").matches; // there Enter makes a line and the button sends
    if (event.key !== "Enter" || event.shiftKey || composing || touch) return;
    event.preventDefault();
    if (!this.running) this.press();
  }

  async #take() {
    await this.#add([...this.file.files]);
    this.file.value = "";
  }

  async #paste(event) {
    const files = [...(event.clipboardData?.files ?? [])].filter((file) => file.type.startsWith("image/"));
    if (!files.length || !this.sees) return;
    event.preventDefault();
    await this.#add(files);
  }

  async #add(files) {
    for (const file of files.slice(0, MAX_IMAGES - this.images.length)) {
      try {
        const bitmap = await createImageBitmap(file);
        this.images.push(shrunk(bitmap, bitmap.width, bitmap.height));
      } catch {
        this.actions.problem(t("badImage", { name: file.name }));
      }
    }
    this.#drawThumbs();
    this.#changed();
  }

  #drawThumbs() {
    this.thumbs.replaceChildren(...this.images.map((url, index) => h("div", { className: "thumb" }, h("img", { src: url, alt: t("attachedImage") }),
      iconButton("close", t("removeImage"), () => {
        this.images.splice(index, 1);
        this.#drawThumbs();
        this.#changed();
      }))));
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
      this.#drawThumbs();
      this.#changed();
      box.close();
    } });
    const box = dialog(t("camera"), t("close"), video, h("div", { className: "row end" }, shoot));
    box.classList.add("camera");
    box.addEventListener("close", () => stream.getTracks().forEach((track) => track.stop()));
  }
}

/** A picture as a JPEG data URL of at most MAX_SIDE pixels a side. */
function shrunk(source, width, height) {
  const scale = Math.min(1, MAX_SIDE / Math.max(width, height));
  const canvas = h("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.9);
}
