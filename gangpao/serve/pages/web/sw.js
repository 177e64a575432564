// The page's own files for the time without a network. Models are not our business, the page keeps them itself.
//
// What is kept is served first, always: a phone away from home would otherwise wait for a server it cannot reach. When the
// page is opened with the server in reach it asks us to compare versions, and tells its reader when there is a new one.

const CACHE = "gangpao-shell";
const LIST = "/phone/app/shell.json";

async function fill() {
  const list = await fetch(LIST, { cache: "no-store" });
  const { version, urls } = await list.clone().json();
  const cache = await caches.open(CACHE);
  const known = await cache.match(LIST);
  if (known && (await known.json()).version === version) return false;
  const answers = await Promise.all(urls.map((url) => fetch(url, { cache: "no-cache" })));
  const missing = urls.filter((_, index) => !answers[index].ok);
  if (missing.length) throw new Error(`not kept: ${missing.join(", ")}`);
  await Promise.all(urls.map((url, index) => cache.put(url, answers[index])));
  await cache.put(LIST, list); // last: what is listed is there
  return Boolean(known);
}

async function answer(request, path) {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(request.mode === "navigate" ? "/phone" : path);
  if (kept) return kept;
  const fresh = await fetch(request);
  if (fresh.ok && path.startsWith("/parts/")) await cache.put(path, fresh.clone());
  return fresh;
}

addEventListener("install", (event) => event.waitUntil(fill().then(() => skipWaiting())));
addEventListener("activate", (event) => event.waitUntil(clients.claim()));

addEventListener("fetch", (event) => {
  const { origin, pathname } = new URL(event.request.url);
  const page = event.request.mode === "navigate" ? pathname === "/phone" : /^\/(web|parts|phone\/app)\//.test(pathname);
  if (event.request.method !== "GET" || origin !== location.origin || !page || pathname === LIST) return;
  event.respondWith(answer(event.request, pathname));
});

addEventListener("message", (event) => {
  if (event.data !== "refresh") return;
  event.waitUntil(fill().then((updated) => updated && event.source.postMessage("updated"), () => {})); // no server: nothing is new
});
