// Our side of the OpenAI API: the list of models, and chat as a stream of small objects.

/** What went wrong, by what can be done about it: network, key, busy, loading, length, stream, request, server. */
export class ChatError extends Error {
  constructor(kind, message = "", retryAfter = 0) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

export class ServerBackend {
  /** `settings.key` is sent where it is set; it may change at any time. */
  constructor(settings) {
    this.settings = settings;
    this.name = "server";
  }

  #headers(more = {}) {
    return this.settings.key ? { ...more, Authorization: `Bearer ${this.settings.key}` } : more;
  }

  async #fetch(url, options) {
    let answer;
    try {
      answer = await fetch(url, options);
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new ChatError("network");
    }
    if (!answer.ok) throw await failure(answer);
    return answer;
  }

  /** [{ id, sees }], without other names of the same models (root says whose). */
  async models() {
    const answer = await this.#fetch("/v1/models", { headers: this.#headers() });
    const { data } = await answer.json();
    const ids = new Set(data.map((model) => model.id));
    const own = data.filter((model) => model.root === model.id || !ids.has(model.root));
    return own.map((model) => ({
      id: model.id,
      sees: (model.architecture ?? model.meta)?.input_modalities?.includes("image") ?? false,
    }));
  }

  /** Yields { thought }, { text }, { finish }, { usage } and { timings } as they come. Raises ChatError, AbortError when stopped. */
  async *chat({ model, messages, params }, signal) {
    const body = { model_defaults: true, ...params, model, messages, stream: true, stream_options: { include_usage: true } };
    const answer = await this.#fetch("/v1/chat/completions", {
      method: "POST", headers: this.#headers({ "Content-Type": "application/json" }), body: JSON.stringify(body), signal,
    });
    let finished = false;
    for await (const event of events(answer.body, signal)) {
      if (event === "[DONE]") return;
      const chunk = JSON.parse(event);
      if (chunk.error) throw new ChatError("stream", chunk.error.message);
      const choice = chunk.choices?.[0];
      const thought = choice?.delta?.reasoning_content ?? choice?.delta?.reasoning;
      if (thought) yield { thought };
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) {
        finished = true;
        yield { finish: choice.finish_reason };
      }
      if (chunk.usage) yield { usage: chunk.usage };
      if (chunk.timings) yield { timings: chunk.timings };
    }
    if (!finished) throw new ChatError("network");
  }
}

/** The `data` of server-sent events in a stream of bytes. */
export async function* events(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?=.)/s);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ChatError("network");
  } finally {
    reader.cancel().catch(() => {}); // it may be over already
  }
}

async function failure(answer) {
  let error = {};
  try {
    error = (await answer.json()).error ?? {};
  } catch {
    error = {}; // not our server's answer; its status must do
  }
  const message = typeof error === "string" ? error : (error.message ?? `HTTP ${answer.status}`);
  const after = Number(answer.headers.get("retry-after")) || 0;
  if (answer.status === 401 || answer.status === 403) return new ChatError("key", message);
  if (answer.status === 429) return new ChatError("busy", message, after);
  if (answer.status === 503) return new ChatError("loading", message, after);
  if (answer.status === 400 && /context/i.test(`${error.code} ${message}`)) return new ChatError("length", message);
  return new ChatError(answer.status < 500 ? "request" : "server", message);
}
