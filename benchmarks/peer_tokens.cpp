// `peer_tokens MODEL PROMPT STEPS`: llama.cpp reads a prompt of that many made-up ids and decodes as many steps, on one thread.
// For counting instructions: a run with more ids less a run with fewer is what the ids cost.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "llama.h"

static bool decode(llama_context* context, std::vector<llama_token> ids) {
  return llama_decode(context, llama_batch_get_one(ids.data(), int32_t(ids.size()))) == 0;
}

int main(int argc, char** argv) {
  if (argc != 4) return std::fprintf(stderr, "usage: peer_tokens MODEL PROMPT STEPS\n"), 2;
  int prompt = std::atoi(argv[2]), steps = std::atoi(argv[3]);
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_backend_init();
  llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (!model) return std::fprintf(stderr, "peer_tokens: cannot read %s\n", argv[1]), 1;
  llama_context_params params = llama_context_default_params();
  params.n_ctx = 512, params.n_batch = 512, params.n_ubatch = 512;
  params.n_threads = params.n_threads_batch = 1;
  llama_context* context = llama_init_from_model(model, params);
  if (!context) return std::fprintf(stderr, "peer_tokens: no context\n"), 1;
  int words = llama_vocab_n_tokens(llama_model_get_vocab(model));
  std::vector<llama_token> ids;
  for (int i = 0; i < prompt; ++i) ids.push_back((i * 37 + 5) % words);
  if (!decode(context, ids)) return std::fprintf(stderr, "peer_tokens: the prompt failed\n"), 1;
  for (int i = 0; i < steps; ++i) {
    const float* logits = llama_get_logits_ith(context, -1);
    int best = 0;
    for (int j = 1; j < words; ++j) best = logits[j] > logits[best] ? j : best;
    if (!decode(context, {best})) return std::fprintf(stderr, "peer_tokens: a step failed\n"), 1;
  }
  std::printf("read %d and decoded %d\n", prompt, steps);
  llama_free(context);
  llama_model_free(model);
}
