// What a model thinks before it answers: a block beside the answer that is opened by whoever wants to read it.

import { h } from "./dom.js";
import { t } from "./i18n.js";

export class Thought {
  /** `open` and `ontoggle(open)`: whether somebody has opened it, which outlives this element. */
  constructor(open, ontoggle) {
    this.summary = h("summary", {});
    this.text = h("div", { className: "plain" });
    this.element = h("details", { className: "thought", hidden: true, open, ontoggle: () => ontoggle(this.element.open) }, this.summary, this.text);
  }

  /** Show the thought of an answer, as far as it goes. */
  show({ thought = "", content, stats }, running) {
    this.element.hidden = !thought;
    if (this.text.textContent !== thought) this.text.textContent = thought;
    const seconds = stats?.thought;
    const done = seconds >= 0.05 ? t("thoughtFor", { n: seconds.toFixed(seconds < 10 ? 1 : 0) }) : t("thought");
    this.summary.textContent = running && !content ? t("thinking") : done;
  }
}
