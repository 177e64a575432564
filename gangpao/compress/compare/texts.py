"""Texts on which models are compared where none are given: English, Chinese and code, written for this and for nothing else.

They are held out: importance matrices and roundings are made on other texts (compress/importance), so that a file is not praised
for what it was fitted to. A model may still have seen texts like them; that is the same for both sides.
"""

EN = (
    "The ferry leaves at a quarter past six, when the harbour lights are still on. Most of the passengers work on the other "
    "side: two nurses, a man who repairs lifts, a girl with a violin case that she never puts down. Nobody talks much before "
    "the middle of the bay. Then the sun comes over the cranes, somebody opens a flask, and within a minute the whole deck "
    "smells of coffee and everyone has an opinion about the weather.",
    "To sharpen a kitchen knife, wet the stone and let it soak until no more bubbles rise. Hold the blade at about fifteen "
    "degrees; two coins under the spine give the right height. Push the edge away from you in long strokes, as if you wanted "
    "to shave a thin layer off the stone, and count. After twenty strokes you feel a burr along the other side. Turn the "
    "knife, repeat, and make fewer strokes each time until the burr is gone.",
    "In a market with one seller the price is not where supply meets demand, because there is no supply curve: the seller "
    "chooses the point on the demand curve that pays best. He stops where one more unit would bring in less than it costs to "
    "make. The units that buyers would have paid for, above cost, and never get are what economists call the loss of welfare.",
    "Bats do not see with their ears in any simple sense. A call of a few thousandths of a second goes out, and what returns "
    "is a smear of echoes from leaves, branches and, perhaps, one moth. The moth beats its wings, so its echo flickers, and it "
    "is the flicker that the bat listens for. Some moths have learned to answer with clicks of their own. Whether these jam "
    "the sonar or warn of a bitter taste was disputed for thirty years.",
    "Minutes of the meeting of 4 May. Present: seven members, one by telephone. The roof of the east wing has been inspected "
    "and will last another winter if the gutters are cleaned before October. Three offers for the heating were compared; the "
    "second is cheaper but does not include the removal of the old boiler. Decision postponed until the fourth offer arrives. "
    "Next meeting: 8 June, in the library, because the hall is let.",
    "Question: A shop sells pencils in boxes of twelve and loose. Mara buys three boxes and five loose pencils, then gives a "
    "quarter of the boxed ones to her brother. How many does she keep?\nAnswer: Three boxes hold 36 pencils, and a quarter of "
    "them is 9. She keeps 36 - 9 = 27 from the boxes and the 5 loose ones, so she has 32 pencils.",
)  # fmt: skip
ZH = (
    "老王在巷口修了三十年自行车。早些年生意好的时候,门前要排队,补胎的、换链条的、给孩子装小座椅的,从早上六点忙到天黑。后来路上"
    "的汽车多了,来的人少了,他却不肯关门。他说,总还有人骑车,骑车的人总会遇到钉子。去年冬天下了一场大雪,公交停了半天,那一天他修了"
    "四十多辆车,晚上回家时手都伸不直。",
    "蒸馒头要先发面。把酵母用温水化开,水不能烫手,太热会把酵母烫死。面粉里加一点糖,发得快些。揉到面团光滑、盆底干净,就盖上湿布,"
    "放在暖和的地方。等面团长到两倍大,用手指按一个坑,坑不回弹,说明发好了。再揉一遍,把里面的气排出去,切成小块,醒二十分钟,冷水上"
    "锅,水开以后蒸十五分钟。",
    "光在真空中的传播速度约为每秒三十万千米,在水中约为它的四分之三。光从空气斜着进入水中时,传播方向会向法线偏折,这种现象叫作折"
    "射。插在水里的筷子看起来好像断了,池水看起来比实际浅,都是这个缘故。如果光从水中射向空气,入射角大到一定程度,光线就不再出来,"
    "而是全部反射回水里。",
    "本协议自双方签字之日起生效,有效期为一年。甲方应当在每月五日之前支付上月的服务费用;逾期超过十五日的,每逾期一日按未付金额的"
    "万分之五支付违约金。乙方应当保证提供的数据真实、完整,不得将甲方的资料透露给第三方。任何一方要求提前终止协议,应当提前三十日"
    "以书面形式通知对方。",
    "问:一列火车长二百四十米,以每秒二十米的速度通过一座桥,从车头上桥到车尾离桥一共用了五十秒。这座桥有多长?\n答:五十秒里火车一"
    "共走了二十乘以五十,等于一千米。这段路程等于桥长加上车长,所以桥长是一千减去二百四十,等于七百六十米。",
    "宋代的城市和前代不同,夜里不再关闭坊门,街上的店铺可以开到三更。东京的马行街一带,灯火连成一片,连蚊子都少了,因为灯油的烟把它"
    "们熏走了。说书的、卖药的、耍猴的各占一块地方,勾栏里一天到晚有戏。有人记下了那时的小吃,光是汤就写了二十多种,到今天还有几样"
    "能在开封的夜市上吃到。",
)  # fmt: skip
CODE = (
    "import heapq\n\n\ndef shortest_paths(graph: dict[str, dict[str, float]], start: str) -> dict[str, float]:\n    "
    "\"\"\"Length of the shortest path from start to every node that can be reached.\"\"\"\n    done: dict[str, float] = {}\n  "
    "  waiting = [(0.0, start)]\n    while waiting:\n        length, node = heapq.heappop(waiting)\n        if node in done:\n "
    "           continue\n        done[node] = length\n        for other, weight in graph[node].items():\n            if other "
    "not in done:\n                heapq.heappush(waiting, (length + weight, other))\n    return done\n",
    "#include <stdio.h>\n#include <string.h>\n\n/* Reverse the words of a line in place. */\nstatic void reverse(char *s, "
    "size_t n) {\n    for (size_t i = 0; i < n / 2; i++) {\n        char c = s[i];\n        s[i] = s[n - 1 - i];\n        s[n "
    "- 1 - i] = c;\n    }\n}\n\nint main(void) {\n    char line[256];\n    while (fgets(line, sizeof line, stdin)) {\n        "
    "size_t n = strcspn(line, \"\\n\");\n        reverse(line, n);\n        for (size_t i = 0, j; i < n; i = j + 1) {\n        "
    "    for (j = i; j < n && line[j] != ' '; j++) {}\n            reverse(line + i, j - i);\n        }\n        puts(line);\n "
    "   }\n    return 0;\n}\n",
    "SELECT c.name, COUNT(o.id) AS orders, SUM(o.total) AS spent\nFROM customers AS c\nLEFT JOIN orders AS o ON o.customer_id "
    "= c.id AND o.placed_at >= DATE '2024-01-01'\nWHERE c.country IN ('CN', 'DE', 'FR')\nGROUP BY c.id, c.name\nHAVING "
    "COUNT(o.id) > 2\nORDER BY spent DESC NULLS LAST\nLIMIT 20;\n",
    "export async function retry(task, { attempts = 3, wait = 200 } = {}) {\n  let last;\n  for (let n = 0; n < attempts; n += "
    "1) {\n    try {\n      return await task(n);\n    } catch (error) {\n      last = error;\n      if (error.name === "
    "'AbortError') break;\n      await new Promise((resolve) => setTimeout(resolve, wait * 2 ** n));\n    }\n  }\n  throw "
    "last;\n}\n",
    "class Matrix:\n    def __init__(self, rows):\n        self.rows = [list(row) for row in rows]\n\n    def __matmul__(self, "
    "other):\n        columns = list(zip(*other.rows))\n        return Matrix([[sum(a * b for a, b in zip(row, col)) for col "
    "in columns] for row in self.rows])\n\n    def transpose(self):\n        return Matrix(zip(*self.rows))\n\n    def "
    "__repr__(self):\n        return '\\n'.join(' '.join(f'{x:8.3f}' for x in row) for row in self.rows)\n",
    "#!/bin/sh\nset -eu\n# Keep the seven newest backups and delete the others.\ntarget=${1:?usage: rotate.sh FOLDER}\ncd "
    "\"$target\"\ncount=0\nfor file in $(ls -1t backup-*.tar.gz 2>/dev/null); do\n    count=$((count + 1))\n    if [ "
    "\"$count\" -gt 7 ]; then\n        echo \"removing $file\"\n        rm -- \"$file\"\n    fi\ndone\n",
)  # fmt: skip
TEXTS = {"en": EN, "zh": ZH, "code": CODE}
