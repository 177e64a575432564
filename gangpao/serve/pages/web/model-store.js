// Models on this device: fetched from the server in ranges, kept in the browser's cache, opened as blobs.
//
// A model is kept as chunks of 8 MiB under addresses of our own. What has come stays: a download that was paused, or a phone
// that lost its network, goes on where it stopped. The blobs that are handed out lie on the disk until somebody reads them.
// A chunk belongs to the server's ETag: another file on the server is another model here.

const CACHE = "gangpao-models";
const CHUNK = 8 << 20;
const ATTEMPTS = 5;
const PAUSE_MS = 800;
const LIST_MS = 4000;

/** What stopped a download: changed, full, key, network. */
export class DepotError extends Error {
  constructor(kind, message = kind) {
    super(message);
    this.kind = kind;
  }
}

const entryUrl = (model) => `/phone/kept/${encodeURIComponent(model.name)}`;
const chunkUrl = (model, piece, index) => `${entryUrl(model)}/${piece.etag}/${index}`;

function* chunks(piece) {
  for (let start = 0, index = 0; start < piece.bytes; start += CHUNK, index++) {
    yield { index, start, stop: Math.min(piece.bytes, start + CHUNK) };
  }
}

export class ModelStore {
  /** `headers()` gives what every request to the server carries. */
  constructor(headers) {
    this.headers = headers;
  }

  /** Models of the server; null where it cannot be reached. Raises DepotError("key"). */
  async offers() {
    let answer;
    try {
      answer = await fetch("/phone/models", { headers: this.headers(), signal: AbortSignal.timeout(LIST_MS) });
    } catch {
      return null;
    }
    if (answer.status === 401) throw new DepotError("key");
    return answer.ok ? (await answer.json()).models : null;
  }

  /** Models that are here complete. */
  async kept() {
    const cache = await caches.open(CACHE);
    const entries = (await cache.keys()).filter(({ url }) => /^\/phone\/kept\/[^/]+$/.test(new URL(url).pathname));
    const found = await Promise.all(entries.map(async (key) => (await cache.match(key)).json()));
    const complete = await Promise.all(found.map(async (model) => (await this.have(model)) === model.bytes));
    return found.filter((_, index) => complete[index]);
  }

  /** Bytes of a model that are here. */
  async have(model) {
    const here = new Set((await (await caches.open(CACHE)).keys()).map(({ url }) => new URL(url).pathname));
    let total = 0;
    for (const piece of model.pieces) {
      for (const { index, start, stop } of chunks(piece)) if (here.has(chunkUrl(model, piece, index))) total += stop - start;
    }
    return total;
  }

  /** Fetch what is missing of a model. `report(bytes)` hears of every arrival; an aborted signal raises AbortError. */
  async fetch(model, report, signal) {
    const cache = await caches.open(CACHE);
    await this.#forgetOthers(cache, model);
    await keep(cache, entryUrl(model), new Blob([JSON.stringify(model)], { type: "application/json" }));
    let done = await this.have(model);
    report(done);
    for (const piece of model.pieces) {
      for (const { index, start, stop } of chunks(piece)) {
        const url = chunkUrl(model, piece, index);
        if (await cache.match(url)) continue;
        const blob = await this.#chunk(piece, start, stop, (part) => report(done + part), signal);
        await keep(cache, url, blob);
        done += blob.size;
        report(done);
      }
    }
  }

  /** Chunks of an older file of the same name. */
  async #forgetOthers(cache, model) {
    const mine = new Set(model.pieces.map((piece) => piece.etag));
    const prefix = `${entryUrl(model)}/`;
    for (const key of await cache.keys()) {
      const { pathname } = new URL(key.url);
      if (pathname.startsWith(prefix) && !mine.has(pathname.slice(prefix.length).split("/")[0])) await cache.delete(key);
    }
  }

  async #chunk(piece, start, stop, report, signal) {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.#once(piece, start, stop, report, signal);
      } catch (error) {
        if (signal.aborted || error instanceof DepotError) throw error;
        if (attempt >= ATTEMPTS) throw new DepotError("network", String(error.message));
        await new Promise((resolve) => setTimeout(resolve, PAUSE_MS * attempt));
      }
    }
  }

  async #once(piece, start, stop, report, signal) {
    const headers = { ...this.headers(), Range: `bytes=${start}-${stop - 1}`, "If-Range": `"${piece.etag}"` };
    const answer = await fetch(piece.url, { headers, signal, cache: "no-store" });
    if (answer.status === 401) throw new DepotError("key");
    if (answer.status === 404 || answer.status === 416 || answer.status === 200) throw new DepotError("changed");
    if (answer.status !== 206) throw new Error(`HTTP ${answer.status}`);
    const parts = [];
    let size = 0;
    for (const reader = answer.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      size += value.byteLength;
      report(size);
    }
    if (size !== stop - start) throw new Error(`${size} bytes came, ${stop - start} were asked for`);
    return new Blob(parts);
  }

  /** The pieces of a model as blobs, in order; null where something is missing. */
  async open(model) {
    const cache = await caches.open(CACHE);
    const pieces = [];
    for (const piece of model.pieces) {
      const found = await Promise.all([...chunks(piece)].map(({ index }) => cache.match(chunkUrl(model, piece, index))));
      if (found.includes(undefined)) return null;
      pieces.push(new Blob(await Promise.all(found.map((answer) => answer.blob()))));
    }
    return pieces;
  }

  /** Delete a model, and what an unfinished download left of it. */
  async remove(model) {
    const cache = await caches.open(CACHE);
    const prefix = entryUrl(model);
    for (const key of await cache.keys()) {
      const { pathname } = new URL(key.url);
      if (pathname === prefix || pathname.startsWith(`${prefix}/`)) await cache.delete(key);
    }
  }
}

async function keep(cache, url, blob) {
  try {
    await cache.put(url, new Response(blob));
  } catch (error) {
    throw new DepotError(error.name === "QuotaExceededError" ? "full" : "network", String(error.message));
  }
}

/** Bytes that the browser would still keep for us; Infinity where it does not say. */
export async function freeStorage() {
  const { quota, usage } = (await navigator.storage?.estimate?.()) ?? {};
  return quota ? quota - usage : Infinity;
}
