// English and Chinese; the browser's language until somebody chooses.

import { STRINGS } from "./strings.js";

/** The text of a key in the page's language, with {name} filled in from `values`. */
export function t(key, values = {}) {
  const text = STRINGS[language()][key] ?? STRINGS.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export function language() {
  return document.documentElement.lang === "zh" ? "zh" : "en";
}

/** Choose "en", "zh" or "auto". */
export function setLanguage(wish) {
  const system = /^zh\b/i.test(navigator.language) ? "zh" : "en";
  document.documentElement.lang = ["en", "zh"].includes(wish) ? wish : system;
}

/** Choose "light", "dark" or "auto". */
export function setTheme(wish) {
  document.documentElement.dataset.wish = wish;
  dispatchEvent(new Event("gangpao-theme"));
}

/** 98.4 MB, as disks and downloads are sold. */
export function bytes(count) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (count >= size) return `${Number((count / size).toPrecision(3))} ${unit}`;
  }
  return `${count} B`;
}

/** Yuan with two digits that mean something, never as a power of ten. */
export function yuan(amount) {
  if (!(amount > 0)) return "¥0";
  const digits = Math.min(12, Math.max(2, 1 - Math.floor(Math.log10(amount))));
  return `¥${amount.toFixed(digits)}`;
}

/** What happened and what to do, in the page's language. */
export function errorText({ kind, message, retryAfter }) {
  const text = t(`error_${kind}`, { n: retryAfter || 5 });
  return ["request", "server", "stream", "device"].includes(kind) && message ? `${text} ${message}` : text;
}
