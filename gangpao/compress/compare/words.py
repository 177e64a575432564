"""Every word of the page in English and in Chinese, by name; what stands in braces is filled in."""

from __future__ import annotations

from gangpao.page import Language

WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "title": "What the smaller model lost", "made": "Compared on {when} by gangpao {version}, on {cpu}.",
        "short": "In short", "texts": "Texts", "answers": "Answers", "speed": "Speed and price", "who": "Files",
        "model": "model", "size": "size", "bits": "bits a weight", "part": "part", "tokens": "tokens", "how": "how",
        "perplexity": "perplexity", "bits_per_byte": "bits a byte", "divergence": "KL from the first", "high": "KL, 99 %",
        "same_top": "same top token", "growth": "perplexity x", "times": "x the first", "busy": "the machine meanwhile",
        "ended": "ends by itself", "at_limit": "hits the limit", "length": "mean tokens", "repeated": "repeated 4-grams",
        "loops": "loops", "closed": "thoughts closed", "empty": "empty", "same": "same beginning",
        "prefill": "prompt tok/s", "decode": "answer tok/s", "yuan": "yuan per million tokens", "greedy": "greedy",
        "drawn": "drawn", "of": "{count} of {asked}", "reference": "reference", "none": "–", "sha256": "sha256",
        "type": "weight type",
        "warn.ends": "Warning: {model} ends {count} of {asked} answers by itself, the reference {reference}: it no "
        "longer stops where the reference does, and chance does not explain it.",
        "warn.closes": "Warning: {model} closes the thought of {count} of {asked} answers, the reference {reference}: it "
        "goes on thinking until the limit.",
        "warn.loops": "Warning: {model} ends {count} of {asked} answers in a loop, the reference {reference}.",
        "no_warning": "No model ends fewer answers, or loops in more, than chance explains. With {asked} answers only "
        "large differences can be told.",
        "said.texts": "± is a 95 % interval. Perplexity x: over the reference's on the same tokens. KL is the mean "
        "divergence of a model's predictions from the reference's, in nats a token; KL, 99 % is what 99 of 100 tokens stay "
        "below, in all the highest of the parts. Same top token: how often both think the same token most likely.",
        "said.own": "The texts are gangpao's own and used for nothing else: no importance matrix or rounding of gangpao "
        "is made on them.",
        "said.given": "The texts were given. Where a file was made with an importance matrix from the same texts, its "
        "figures are too good.",
        "said.answers": "{prompts} prompts, answers of at most {max_tokens} tokens: greedy ones, and {drawn} drawn a "
        "prompt with the sampling that the reference recommends ({sampling}) and the same seeds for all. Loops: the end is "
        "one block three times. Same beginning: tokens of the greedy answer until it differs from the reference's, the "
        "median.",
        "no_divergence": "{model}: no divergence from the reference, bits a byte are comparable. {why}",
        "not_ended": "Answers that the reference ended and {model} did not", "prompt": "Prompt",
        "from": "{model} ({tokens} tokens)", "picture.divergence": "KL from the first model against size",
        "picture.ends": "Answers that end by themselves, percent", "axis.size": "size, MB",
        "axis.divergence": "KL, nats a token",
        "said.speed": "One conversation, {machine}. X the first: both measured one after the other. The price is that of "
        "the cost profile {profile}.",
        "no_matplotlib": "No pictures: they need matplotlib (pip install 'gangpao[lab]').",
    },
    "zh": {
        "title": "小模型失去了什么", "made": "{when} 由 gangpao {version} 在 {cpu} 上比较。", "short": "概要",
        "texts": "文本", "answers": "回答", "speed": "速度与价格", "who": "文件", "model": "模型", "size": "大小",
        "bits": "每权重比特", "part": "部分", "tokens": "词元", "how": "方式", "perplexity": "困惑度",
        "bits_per_byte": "每字节比特", "divergence": "与第一个的 KL", "high": "KL,99 %", "same_top": "首选词元相同",
        "growth": "困惑度倍数", "times": "是第一个的几倍", "busy": "当时的机器", "ended": "自行结束",
        "at_limit": "达到上限", "length": "平均词元数", "repeated": "重复 4 元组", "loops": "循环", "closed": "思考已收尾",
        "empty": "空回答", "same": "相同开头", "prefill": "提示 tok/s", "decode": "回答 tok/s", "yuan": "每百万词元(元)",
        "greedy": "贪心", "drawn": "采样", "of": "{asked} 个中 {count} 个", "reference": "参照", "none": "–",
        "sha256": "sha256", "type": "权重类型",
        "warn.ends": "警告:{model} 的 {asked} 个回答中只有 {count} 个自行结束,参照模型有 {reference} 个:它在参照会停的地"
        "方停不下来,这不能用偶然解释。",
        "warn.closes": "警告:{model} 的 {asked} 个回答中只有 {count} 个收尾了思考,参照模型有 {reference} 个:它一直思考到"
        "上限。",
        "warn.loops": "警告:{model} 的 {asked} 个回答中有 {count} 个以循环结束,参照模型有 {reference} 个。",
        "no_warning": "没有模型比偶然所能解释的更少自行结束或更多循环。只有 {asked} 个回答时,只能看出大的差别。",
        "said.texts": "± 为 95 % 区间。困惑度倍数:同样词元上与参照之比。KL 是模型的预测与参照之间的平均散度,单位为每词元"
        "奈特;“KL,99 %”指 100 个词元中有 99 个低于此值,“all”一行取各部分中最高的。首选词元相同:两者认为最可能的词元相同的比例"
        "。",
        "said.own": "文本由 gangpao 自己编写,不作他用:gangpao 的重要性矩阵与舍入都不用它们。",
        "said.given": "文本由用户给出。如果某个文件的重要性矩阵出自同样的文本,它的数字会偏好。",
        "said.answers": "{prompts} 个提示,回答至多 {max_tokens} 个词元:贪心回答,以及每个提示 {drawn} 个采样回答,采样用参"
        "照模型推荐的设置({sampling}),所有模型的种子相同。循环:结尾是同一块重复三次。相同开头:贪心回答与参照回答开始不同之前"
        "的词元数,取中位数。",
        "no_divergence": "{model}:与参照之间没有散度,可比较每字节比特。{why}",
        "not_ended": "参照结束了而 {model} 没有结束的回答", "prompt": "提示", "from": "{model}({tokens} 个词元)",
        "picture.divergence": "与第一个模型的 KL 与大小", "picture.ends": "自行结束的回答,百分比", "axis.size": "大小,MB",
        "axis.divergence": "KL,每词元奈特",
        "said.speed": "单个对话,{machine}。倍数:两者先后紧接着测量。价格按成本配置 {profile} 计算。",
        "no_matplotlib": "没有图:需要 matplotlib(pip install 'gangpao[lab]')。",
    },
}  # fmt: skip
