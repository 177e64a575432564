// The settings: how it looks, what the model is told, how it samples, the key of the server, and what the browser keeps.

import { dialog, h } from "./dom.js";
import { t } from "./i18n.js";
import { exportJson } from "./sidebar.js";

// Name at the API, least, most, step. An empty field leaves the choice to the backend.
export const SAMPLING = [
  ["temperature", 0, 2, 0.05],
  ["top_p", 0, 1, 0.01],
  ["max_tokens", 1, 1_000_000, 1],
  ["frequency_penalty", -2, 2, 0.1],
  ["presence_penalty", -2, 2, 0.1],
  ["seed", 0, 4_294_967_295, 1],
];

/** `app`: settings, conversation, and what is done with changes (see app.js). `more`: further sections. */
export function openSettings(app, more = []) {
  const { settings } = app;
  const box = dialog(t("settings"), t("close"),
    section(t("look"),
      choice(t("theme"), ["auto", "light", "dark"], settings.theme, (value) => app.change({ theme: value })),
      choice(t("language"), ["auto", "en", "zh"], settings.language, (value) => {
        app.change({ language: value });
        box.close();
        openSettings(app, app.moreSettings?.() ?? []);
      })),
    section(t("instructions"), systemField(app)),
    section(t("sampling"), h("p", { className: "hint", textContent: t("samplingHint") }),
      h("div", { className: "grid" }, SAMPLING.map((row) => samplingField(app, row)))),
    ...more,
    section(t("data"), h("p", { className: "hint", textContent: t("dataHint") }), keepSwitch(app), dataButtons(app, () => box.close())));
  box.classList.add("settings");
  return box;
}

export function section(title, ...children) {
  return h("section", {}, h("h3", { textContent: title }), ...children);
}

/** A labelled select over some values, whose names are `choice_VALUE` in the strings unless given. */
export function choice(label, values, chosen, onchoice, names = {}) {
  const select = h("select", { onchange: () => onchoice(select.value) },
    values.map((value) => h("option", { value, textContent: names[value] ?? t(`choice_${value}`) })));
  select.value = chosen;
  return h("label", { className: "line" }, h("span", { textContent: label }), select);
}

function systemField(app) {
  const field = h("textarea", { rows: 4, value: app.conversation.system, placeholder: t("systemPlaceholder"), onchange: () => app.setSystem(field.value.trim(), always.checked) });
  const always = h("input", { type: "checkbox", checked: Boolean(app.settings.system) && app.settings.system === app.conversation.system,
    onchange: () => app.setSystem(field.value.trim(), always.checked) });
  return h("div", {}, h("label", { className: "stack" }, h("span", { textContent: t("systemPrompt") }), field),
    h("label", { className: "check" }, always, h("span", { textContent: t("systemAlways") })));
}

function samplingField(app, [name, min, max, step]) {
  const field = h("input", { type: "number", inputmode: "decimal", min, max, step: step === 1 ? 1 : "any", value: app.settings.params[name] ?? "", placeholder: t("default"),
    onchange: () => {
      const params = { ...app.settings.params };
      if (field.value === "") delete params[name];
      else if (field.checkValidity()) params[name] = Number(field.value);
      else return field.reportValidity();
      return app.change({ params });
    } });
  return h("label", { className: "stack" }, h("span", { textContent: t(`sampling_${name}`) }), field);
}

function keepSwitch(app) {
  const box = h("input", { type: "checkbox", checked: app.settings.keep, onchange: () => app.setKeep(box.checked) });
  return h("div", { className: "stack" }, h("label", { className: "check" }, box, h("span", { textContent: t("keep") })),
    h("p", { className: "hint", textContent: t("keepHint") }));
}

function dataButtons(app, close) {
  const file = h("input", { type: "file", accept: "application/json,.json", hidden: true, onchange: async () => {
    const [chosen] = file.files;
    if (chosen) await app.importFile(chosen);
    close();
  } });
  const button = (key, onclick, kind = "") => h("button", { type: "button", className: `button ${kind}`, textContent: t(key), onclick });
  return h("div", { className: "row wrap" },
    button("exportThis", () => exportJson([app.conversation])),
    button("exportAll", async () => exportJson(await app.store.all())),
    button("import", () => file.click()), file,
    button("deleteAll", () => confirmed(t("deleteAllSure"), t("deleteAll"), async () => {
      await app.removeAll();
      close();
    }), "danger"));
}

/** Ask once before something that cannot be undone. */
export function confirmed(question, label, act) {
  const box = dialog(label, t("close"), h("p", { textContent: question }), h("div", { className: "row end" },
    h("button", { type: "button", className: "button", textContent: t("cancel"), onclick: () => box.close() }),
    h("button", { type: "button", className: "button danger", textContent: label, onclick: () => {
      box.close();
      act();
    } })));
}

/** Ask for the server's API key; resolves to true when one was entered. */
export function askKey(app) {
  return new Promise((resolve) => {
    const field = h("input", { type: "password", autocomplete: "off", value: app.settings.key, required: true, "aria-label": t("key") });
    let entered = false;
    const form = h("form", { onsubmit: (event) => {
      event.preventDefault();
      entered = true;
      app.change({ key: field.value.trim() });
      box.close();
    } }, h("p", { textContent: t("keyHint") }), field, h("div", { className: "row end" }, h("button", { className: "button primary", textContent: t("save") })));
    const box = dialog(t("key"), t("close"), form);
    box.addEventListener("close", () => resolve(entered));
    field.focus();
  });
}

/** The shortcuts, and where the licences of other people's work are. */
export function openHelp() {
  const rows = [["Enter", "help_enter"], ["Shift + Enter", "help_line"], ["Esc", "help_stop"], ["/", "help_focus"], ["Alt + N", "help_new"], ["Ctrl + K", "help_search"], ["?", "help_help"]];
  dialog(t("help"), t("close"), h("dl", { className: "keys" }, rows.flatMap(([key, text]) => [h("dt", {}, h("kbd", { textContent: key })), h("dd", { textContent: t(text) })])),
    h("p", {}, h("a", { href: "/licences", target: "_blank", rel: "noopener", textContent: t("licences") })));
}
