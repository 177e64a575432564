"""What a model is worth: benchmarks, conversations judged, perplexity, speed, and the price of it all, in one form of result.

results.py      what a run leaves: results.json and one line an item; everything else reads or writes this
tasks/          what is asked: suites, tasks, and where their rows are from
models/         who answers: our engine, a checkpoint in torch, any OpenAI-compatible server
graders/        right or wrong: numbers, formulas, programs run in a cage, instructions
judge/          conversations that another model marks
perplexity/     how surprised a model is, and how far two of them are apart
report/         runs side by side with published figures
"""
