// Before anything is painted: the theme and the language that were chosen, else those of the system.
"use strict";
(() => {
  let saved = {};
  try {
    saved = JSON.parse(localStorage.getItem("gangpao.settings") ?? "{}") ?? {};
  } catch {
    saved = {}; // storage is forbidden, or holds something else: the defaults do
  }
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const apply = () => {
    root.dataset.theme = ["light", "dark"].includes(root.dataset.wish) ? root.dataset.wish : dark.matches ? "dark" : "light";
  };
  root.dataset.wish = typeof saved.theme === "string" ? saved.theme : "auto";
  root.lang = ["en", "zh"].includes(saved.language) ? saved.language : /^zh\b/i.test(navigator.language) ? "zh" : "en";
  apply();
  dark.addEventListener("change", apply);
  addEventListener("gangpao-theme", apply);
})();
