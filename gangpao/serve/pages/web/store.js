// What the browser keeps: conversations in IndexedDB (in memory where that is forbidden), settings in localStorage.
//
// Somebody may switch that off (settings.keep): then conversations that change are in memory only, and the API key is in
// sessionStorage, which ends with the tab. What was kept before stays, is still shown, and can be deleted.

const SETTINGS = "gangpao.settings";
const KEY = "gangpao.key";

/** A place for conversations. `kept` says whether they outlive the page. */
export async function openStore(name) {
  try {
    const database = await request(indexedDB.open(name, 1), (opening) => {
      opening.onupgradeneeded = () => opening.result.createObjectStore("conversations", { keyPath: "id" });
    });
    return new Store(database, name);
  } catch {
    return new Store(null, name); // a private window, or storage is full: then only until the page is closed
  }
}

function request(asked, prepare = () => {}) {
  return new Promise((resolve, reject) => {
    prepare(asked);
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
    asked.onblocked = () => reject(new Error("blocked"));
  });
}

class Store {
  constructor(database, name) {
    this.database = database;
    this.kept = database !== null;
    this.keep = true; // whether changes are written
    this.memory = new Map(); // what is not written, by id
    this.channel = "BroadcastChannel" in globalThis ? new BroadcastChannel(name) : null;
  }

  /** Call `listener` with an id when another window has changed that conversation. */
  onchange(listener) {
    if (this.channel) this.channel.onmessage = (event) => listener(event.data);
  }

  #run(mode, work) {
    return request(work(this.database.transaction("conversations", mode).objectStore("conversations")));
  }

  /** Write what is said from now on, or do not. What was not written until now is, when it is switched on. */
  async setKeep(keep) {
    this.keep = keep;
    if (!keep || !this.database) return;
    for (const conversation of this.memory.values()) await this.put(conversation);
  }

  /** All conversations, the one used last first. */
  async all() {
    const written = this.database ? await this.#run("readonly", (store) => store.getAll()) : [];
    const found = [...written.filter(({ id }) => !this.memory.has(id)), ...this.memory.values()];
    return found.sort((a, b) => b.updated - a.updated);
  }

  async get(id) {
    const unwritten = this.memory.get(id);
    return unwritten || !this.database ? unwritten : this.#run("readonly", (store) => store.get(id));
  }

  async put(conversation) {
    if (this.database && this.keep) {
      await this.#run("readwrite", (store) => store.put(conversation));
      this.memory.delete(conversation.id);
    } else this.memory.set(conversation.id, conversation);
    this.channel?.postMessage(conversation.id);
  }

  async remove(id) {
    if (this.database) await this.#run("readwrite", (store) => store.delete(id));
    this.memory.delete(id);
    this.channel?.postMessage(id);
  }

  async clear() {
    if (this.database) await this.#run("readwrite", (store) => store.clear());
    this.memory.clear();
    this.channel?.postMessage("");
  }
}

const DEFAULTS = { theme: "auto", language: "auto", model: "", system: "", key: "", keep: true, params: {}, device: {} };

/** The settings, with defaults for what was never set. */
export function loadSettings() {
  try {
    const saved = JSON.parse(localStorage.getItem(SETTINGS) ?? "{}");
    const found = { ...structuredClone(DEFAULTS), ...(saved && typeof saved === "object" ? saved : {}) };
    return found.keep ? found : { ...found, key: sessionStorage.getItem(KEY) ?? "" };
  } catch {
    return structuredClone(DEFAULTS);
  }
}

export function saveSettings(settings) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings.keep ? settings : { ...settings, key: "", system: "" }));
    if (settings.keep || !settings.key) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, settings.key);
  } catch {
    return false; // storage is forbidden: they last as long as the page
  }
  return true;
}
