// For screen readers: an answer is read out sentence by sentence while it is written, not word by word and not twice.

import { h } from "./dom.js";

const END = /[^.!?。！？\n]*[.!?。！？\n]+/gy;
const KEPT = 20;

export class Announcer {
  constructor() {
    this.element = h("div", { className: "offscreen", role: "log", "aria-live": "polite", "aria-relevant": "additions" });
    this.read = 0;
  }

  /** A new answer begins. */
  begin() {
    this.read = 0;
  }

  /** Read out what is finished of `text`; all of it when `done`. */
  follow(text, done = false) {
    END.lastIndex = this.read;
    for (let found = END.exec(text); found; found = END.exec(text)) {
      if (!done && END.lastIndex === text.length && !text.endsWith("\n")) break; // "3." may become "3.5"
      this.read = END.lastIndex;
      this.say(found[0]);
    }
    if (done) {
      this.say(text.slice(this.read));
      this.read = text.length;
    }
  }

  /** Read out one text now. */
  say(text) {
    const plain = text.replace(/[*_`#>|~]+/g, " ").trim();
    if (!plain) return;
    this.element.append(h("p", { textContent: plain }));
    while (this.element.children.length > KEPT) this.element.firstElementChild.remove();
  }
}
