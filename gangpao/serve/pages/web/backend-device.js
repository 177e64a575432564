// The backend that is this device: llama.cpp as WebAssembly (wllama), in workers of the browser.

import { ChatError } from "./backend-server.js";

const CONTEXT = 2048; // tokens; the cache of keys and values grows with it
const MOST_THREADS = 8;
const QUIET = { debug() {}, log() {}, warn() {}, error: console.error };

/** What the browser lacks for the library, as a word; "" where it has everything. */
export function lacking() {
  if (typeof WebAssembly !== "object") return "WebAssembly";
  // A module of one function with a SIMD instruction, then one with an exception.
  const simd = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
  const exceptions = [0, 97, 115, 109, 1, 0, 0, 0, 1, 4, 1, 96, 0, 0, 3, 2, 1, 0, 10, 8, 1, 6, 0, 6, 64, 25, 11, 11];
  if (!WebAssembly.validate(new Uint8Array(simd))) return "WebAssembly SIMD";
  return WebAssembly.validate(new Uint8Array(exceptions)) ? "" : "WebAssembly exceptions";
}

/** Whether the library will take its build for browsers without JSPI or 64-bit memories, which is Safari's. */
export function needsCompat() {
  if (/Firefox\/[\d.]+/.test(navigator.userAgent)) return false; // the library never does there
  if (!WebAssembly.Suspending) return true;
  try {
    return !new WebAssembly.Memory({ address: "i64", initial: 1n });
  } catch {
    return true;
  }
}

/** Files of the library that this browser loads. */
export function libraryFiles() {
  const kind = needsCompat() ? "wllama-compat" : "wllama";
  return ["/parts/wllama.js", `/parts/${kind}.wasm`, ...(kind === "wllama" ? [] : [`/parts/${kind}.js`])];
}

/** Threads to begin with. A phone has fast and slow cores, a laptop two threads a core: half of many, all of few. */
export function defaultThreads() {
  if (!globalThis.crossOriginIsolated) return 1;
  const cores = navigator.hardwareConcurrency || 1;
  return cores <= 4 ? cores : Math.min(MOST_THREADS, Math.max(4, cores >> 1));
}

/**
 * Bytes of memory that a model takes here, about: its weights, the cache, buffers and the program. Not what the server counts
 * (engine/memory.py): here another program computes, with its own buffers, a fixed context and a browser around it.
 */
export function memoryNeeded(model) {
  return model.bytes * 1.1 + 250e6;
}

export class DeviceBackend {
  constructor(settings) {
    this.settings = settings;
    this.name = "device";
    this.loaded = null; // the model, while it is in memory
    this.wllama = null;
  }

  async models() {
    return this.loaded ? [{ id: this.loaded.name, sees: false }] : [];
  }

  /** Put a model into memory. Raises ChatError: memory, device. */
  async load(model, blobs) {
    await this.unload();
    const { threads = defaultThreads(), gpu = false } = this.settings.device;
    const { Wllama } = await import("/parts/wllama.js");
    // The models are kept by us, so the library's own store is not even opened.
    const at = (name) => new URL(`/parts/${name}`, location.href).href; // its workers have no address to be relative to
    this.wllama = new Wllama({ default: at("wllama.wasm") }, { suppressNativeLog: true, logger: QUIET, cacheManager: {} });
    this.wllama.setCompat({ worker: at("wllama-compat.js"), wasm: at("wllama-compat.wasm") });
    const options = { n_ctx: Math.min(CONTEXT, model.context || CONTEXT), n_threads: threads, n_parallel: 1, warmup: false };
    try {
      await this.wllama.loadModel(blobs, gpu ? options : { ...options, n_gpu_layers: 0 });
    } catch (error) {
      await this.unload();
      throw new ChatError(isMemory(error) ? "memory" : "device", String(error.message ?? error));
    }
    this.loaded = model;
    return { threads: this.wllama.getNumThreads() };
  }

  async unload() {
    const { wllama } = this;
    this.loaded = null;
    this.wllama = null;
    await wllama?.exit();
  }

  /** As the server's: yields { thought }, { text }, { finish }, { usage } and { timings }. */
  async *chat({ messages, params }, signal) {
    if (!this.wllama) throw new ChatError("device");
    const request = { ...params, messages, stream: true, stream_options: { include_usage: true }, abortSignal: signal };
    try {
      for await (const chunk of await this.wllama.createChatCompletion(request)) {
        signal.throwIfAborted();
        const choice = chunk.choices?.[0];
        if (choice?.delta?.reasoning_content) yield { thought: choice.delta.reasoning_content };
        if (choice?.delta?.content) yield { text: choice.delta.content };
        if (choice?.finish_reason) yield { finish: choice.finish_reason };
        if (chunk.usage) yield { usage: chunk.usage };
        if (chunk.timings) yield { timings: chunk.timings };
      }
    } catch (error) {
      if (signal.aborted || error instanceof ChatError) throw error;
      throw new ChatError(isMemory(error) ? "memory" : /context|exceed/i.test(error.message) ? "length" : "device", String(error.message ?? error));
    }
  }
}

function isMemory(error) {
  return error instanceof RangeError || /memory|allocat|oom/i.test(String(error?.message ?? error));
}
