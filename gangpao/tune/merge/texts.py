"""A few texts in English and Chinese and of code, on which a merged model is compared with its adapter."""

TEXTS = (
    "A river begins where rain cannot soak away any more. Small streams meet, carry sand and stones with them, and wear down their "
    "beds a little every year. Where the land becomes flat the water slows, drops what it carried, and builds the plain on which "
    "towns were founded later.",
    "小明每天早上七点起床,先烧一壶水,再把昨天晚上写好的计划看一遍。他说,事情不在多,在于今天能不能做完最要紧的那一件。"
    "下午如果还有时间,他就到河边走一走,回来以后把学到的东西记下来。",
    "def moving_average(values: list[float], width: int) -> list[float]:\n"
    '    """Means of `width` neighbours."""\n'
    "    if width < 1:\n        raise ValueError('width must be at least 1')\n"
    "    total = sum(values[:width])\n    out = [total / width]\n"
    "    for old, new in zip(values, values[width:]):\n        total += new - old\n        out.append(total / width)\n"
    "    return out\n",
    "Q: A train leaves at 9:40 and arrives at 12:05. How long does the journey take?\nA: From 9:40 to 12:00 it is 2 hours and 20 "
    "minutes, and 5 minutes more make 2 hours and 25 minutes.\n",
    "问:水在标准大气压下的沸点是多少?\n答:在标准大气压下,纯水的沸点是100摄氏度;海拔越高,气压越低,沸点也越低。\n",
    "find . -name '*.log' -mtime +7 -print0 | xargs -0 gzip\ngit log --oneline --since='2 weeks ago' | head -n 20\n"
    "tar -czf backup.tar.gz --exclude=node_modules src docs\n",
)
