// What the browser keeps: conversations in IndexedDB (in memory where that is forbidden), settings in localStorage.

const SETTINGS = "gangpao.settings";

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
    this.memory = new Map();
    this.channel = "BroadcastChannel" in globalThis ? new BroadcastChannel(name) : null;
  }

  /** Call `listener` with an id when another window has changed that conversation. */
  onchange(listener) {
    if (this.channel) this.channel.onmessage = (event) => listener(event.data);
  }

  #run(mode, work) {
    return request(work(this.database.transaction("conversations", mode).objectStore("conversations")));
  }

  /** All conversations, the one used last first. */
  async all() {
    const found = this.database ? await this.#run("readonly", (store) => store.getAll()) : [...this.memory.values()];
    return found.sort((a, b) => b.updated - a.updated);
  }

  async get(id) {
    return this.database ? this.#run("readonly", (store) => store.get(id)) : this.memory.get(id);
  }

  async put(conversation) {
    if (this.database) await this.#run("readwrite", (store) => store.put(conversation));
    else this.memory.set(conversation.id, conversation);
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

const DEFAULTS = { theme: "auto", language: "auto", model: "", system: "", key: "", params: {}, device: {} };

/** The settings, with defaults for what was never set. */
export function loadSettings() {
  try {
    const saved = JSON.parse(localStorage.getItem(SETTINGS) ?? "{}");
    return { ...structuredClone(DEFAULTS), ...(saved && typeof saved === "object" ? saved : {}) };
  } catch {
    return structuredClone(DEFAULTS);
  }
}

export function saveSettings(settings) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch {
    return false; // storage is forbidden: they last as long as the page
  }
  return true;
}
