// The browser's own speech, where it has one: texts read aloud, and one spoken sentence as text.

import { language } from "./i18n.js";

const Recognition = globalThis.SpeechRecognition ?? globalThis.webkitSpeechRecognition;

export const canSpeak = "speechSynthesis" in globalThis;
export const canListen = Boolean(Recognition);

function tag() {
  return language() === "zh" ? "zh-CN" : "en-US";
}

/** Read a text aloud; what is still being read is cut off, so that the voice is never behind the picture. */
export function speak(text) {
  speechSynthesis.cancel();
  const said = new SpeechSynthesisUtterance(text);
  said.lang = /[\u4e00-\u9fff]/.test(text) ? "zh-CN" : tag();
  speechSynthesis.speak(said);
}

export function silence() {
  if (canSpeak) speechSynthesis.cancel();
}

/** Listen to one sentence. Resolves to its text, empty where nothing was understood; rejects with an Error whose name is why. */
export function listen(signal) {
  return new Promise((resolve, reject) => {
    const heard = new Recognition();
    let text = "";
    heard.lang = tag();
    heard.onresult = (event) => { text = event.results[0][0].transcript; };
    heard.onerror = (event) => (["no-speech", "aborted"].includes(event.error) ? resolve("") : reject(Object.assign(new Error(event.error), { name: event.error })));
    heard.onend = () => resolve(text);
    signal.addEventListener("abort", () => heard.abort());
    heard.start();
  });
}
