"""List the papers that the rules and methods implement, and print them as BibTeX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable


@runtime_checkable
class Cited(Protocol):
    """A rule, or a factor of a `Schedule`, that names the papers it implements.

    Attributes:
        references: Keys of `REFERENCES`, or whole BibTeX entries that begin with "@". An empty
            tuple states that no paper describes the rule.
    """

    @property
    def references(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Describe one paper.

    >>> print(REFERENCES["krizhevsky2014weird"].short)
    Krizhevsky, 2014, arXiv 1404.5997

    Args:
        key: BibTeX key of the entry.
        authors: All authors in the paper's order, each as "Family name, given names".
        title: Title of the paper.
        year: Year of publication: for a preprint, the year of its first version.
        arxiv: arXiv number; "" if the paper is not cited from arXiv.
        journal: Name of the journal; "" if the paper did not appear in a journal.
        book: Title of the proceedings; "" if the paper did not appear in proceedings.
        volume: Volume and issue, such as "28(4)"; "" if unknown.
        pages: Page range; "" if unknown.
    """

    key: str
    authors: tuple[str, ...]
    title: str
    year: int
    arxiv: str = ""
    journal: str = ""
    book: str = ""
    volume: str = ""
    pages: str = ""

    @property
    def families(self) -> tuple[str, ...]:
        """Family names of all authors, in the paper's order."""
        return tuple(author.partition(",")[0].strip("{}") for author in self.authors)

    @property
    def short(self) -> str:
        """Authors, year and arXiv number in one line; three or more authors become "et al."."""
        names = self.families
        who = ", ".join(names) if len(names) <= 2 else f"{names[0]} et al."
        where = f"arXiv {self.arxiv}" if self.arxiv else self.journal or self.book
        return f"{who}, {self.year}, {where}"

    @property
    def bibtex(self) -> str:
        """The BibTeX entry of the paper."""
        kind = "article" if self.journal else "inproceedings" if self.book else "misc"
        fields = {
            "author": " and ".join(self.authors),
            "title": f"{{{self.title}}}",
            "journal": self.journal,
            "booktitle": self.book,
            "volume": self.volume.partition("(")[0],
            "number": self.volume.partition("(")[2].rstrip(")"),
            "pages": self.pages,
            "year": str(self.year),
            "eprint": self.arxiv,
            "archivePrefix": "arXiv" if self.arxiv else "",
        }
        lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if value]
        return f"@{kind}{{{self.key},\n" + ",\n".join(lines) + "\n}"


_PAPERS = (
    Reference(
        key="agarwal2020accordion",
        authors=(
            *("Agarwal, Saurabh", "Wang, Hongyi", "Lee, Kangwook"),
            *("Venkataraman, Shivaram", "Papailiopoulos, Dimitris"),
        ),
        title=(
            "Accordion: Adaptive Gradient Communication via Critical Learning Regime Identification"
        ),
        year=2020,
        arxiv="2010.16248",
    ),
    Reference(
        key="balles2016coupling",
        authors=("Balles, Lukas", "Romero, Javier", "Hennig, Philipp"),
        title="Coupling Adaptive Batch Sizes with Learning Rates",
        year=2016,
        arxiv="1612.05086",
    ),
    Reference(
        key="bollapragada2018adaptive",
        authors=("Bollapragada, Raghu", "Byrd, Richard", "Nocedal, Jorge"),
        title="Adaptive Sampling Strategies for Stochastic Optimization",
        year=2018,
        journal="SIAM Journal on Optimization",
        volume="28(4)",
        pages="3312--3343",
    ),
    Reference(
        key="byrd2012sample",
        authors=("Byrd, Richard H.", "Chin, Gillian M.", "Nocedal, Jorge", "Wu, Yuchen"),
        title="Sample Size Selection in Optimization Methods for Machine Learning",
        year=2012,
        journal="Mathematical Programming",
        volume="134(1)",
        pages="127--155",
    ),
    Reference(
        key="chen2025divebatch",
        authors=("Chen, Yuen", "Wang, Yian", "Sundaram, Hari"),
        title=(
            "DiveBatch: Accelerating Model Training Through Gradient-Diversity Aware Batch Size "
            "Adaptation"
        ),
        year=2025,
        arxiv="2509.16173",
    ),
    Reference(
        key="devarakonda2017adabatch",
        authors=("Devarakonda, Aditya", "Naumov, Maxim", "Garland, Michael"),
        title="AdaBatch: Adaptive Batch Sizes for Training Deep Neural Networks",
        year=2017,
        arxiv="1712.02029",
    ),
    Reference(
        key="goyal2017accurate",
        authors=(
            *("Goyal, Priya", "Doll{\\'a}r, Piotr", "Girshick, Ross", "Noordhuis, Pieter"),
            *("Wesolowski, Lukasz", "Kyrola, Aapo", "Tulloch, Andrew", "Jia, Yangqing"),
            "He, Kaiming",
        ),
        title="Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour",
        year=2017,
        arxiv="1706.02677",
    ),
    Reference(
        key="hu2024minicpm",
        authors=(
            *("Hu, Shengding", "Tu, Yuge", "Han, Xu", "He, Chaoqun", "Cui, Ganqu", "Long, Xiang"),
            *("Zheng, Zhi", "Fang, Yewei", "Huang, Yuxiang", "Zhao, Weilin", "Zhang, Xinrong"),
            *("Thai, Zheng Leng", "Zhang, Kaihuo", "Wang, Chongyi", "Yao, Yuan"),
            *("Zhao, Chenyang", "Zhou, Jie", "Cai, Jie", "Zhai, Zhongwu", "Ding, Ning"),
            *("Jia, Chao", "Zeng, Guoyang", "Li, Dahai", "Liu, Zhiyuan", "Sun, Maosong"),
        ),
        title=(
            "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training "
            "Strategies"
        ),
        year=2024,
        arxiv="2404.06395",
    ),
    Reference(
        key="johnson2020adascale",
        authors=("Johnson, Tyler B.", "Agrawal, Pulkit", "Gu, Haijie", "Guestrin, Carlos"),
        title="AdaScale SGD: A User-Friendly Algorithm for Distributed Training",
        year=2020,
        arxiv="2007.05105",
    ),
    Reference(
        key="kim2021automated",
        authors=(
            *("Kim, Chiheon", "Kim, Saehoon", "Kim, Jongmin", "Lee, Donghoon", "Kim, Sungwoong"),
        ),
        title="Automated Learning Rate Scheduler for Large-batch Training",
        year=2021,
        arxiv="2107.05855",
    ),
    Reference(
        key="krizhevsky2014weird",
        authors=("Krizhevsky, Alex",),
        title="One weird trick for parallelizing convolutional neural networks",
        year=2014,
        arxiv="1404.5997",
    ),
    Reference(
        key="lau2024adadagrad",
        authors=("Lau, Tim Tsz-Kit", "Liu, Han", "Kolar, Mladen"),
        title="AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods",
        year=2024,
        arxiv="2402.11215",
    ),
    Reference(
        key="lau2024adaptive",
        authors=("Lau, Tim Tsz-Kit", "Li, Weijian", "Xu, Chenwei", "Liu, Han", "Kolar, Mladen"),
        title=(
            "Adaptive Batch Size Schedules for Distributed Training of Language Models with Data "
            "and Model Parallelism"
        ),
        year=2024,
        arxiv="2412.21124",
    ),
    Reference(
        key="loshchilov2016sgdr",
        authors=("Loshchilov, Ilya", "Hutter, Frank"),
        title="SGDR: Stochastic Gradient Descent with Warm Restarts",
        year=2016,
        arxiv="1608.03983",
    ),
    Reference(
        key="mccandlish2018empirical",
        authors=("McCandlish, Sam", "Kaplan, Jared", "Amodei, Dario", "{OpenAI Dota Team}"),
        title="An Empirical Model of Large-Batch Training",
        year=2018,
        arxiv="1812.06162",
    ),
    Reference(
        key="meterez2025seesaw",
        authors=(
            *("Meterez, Alexandru", "Morwani, Depen", "Wu, Jingfeng", "Oncescu, Costin-Andrei"),
            *("Pehlevan, Cengiz", "Kakade, Sham"),
        ),
        title=(
            "Seesaw: Accelerating Training by Balancing Learning Rate and Batch Size Scheduling"
        ),
        year=2025,
        arxiv="2510.14717",
    ),
    Reference(
        key="qiao2020pollux",
        authors=(
            *("Qiao, Aurick", "Choe, Sang Keun", "Subramanya, Suhas Jayaram"),
            *("Neiswanger, Willie", "Ho, Qirong", "Zhang, Hao", "Ganger, Gregory R."),
            "Xing, Eric P.",
        ),
        title="Pollux: Co-adaptive Cluster Scheduling for Goodput-Optimized Deep Learning",
        year=2020,
        arxiv="2008.12260",
    ),
    Reference(
        key="qin2021simigrad",
        authors=(
            *("Qin, Heyang", "Rajbhandari, Samyam", "Ruwase, Olatunji", "Yan, Feng"),
            *("Yang, Lei", "He, Yuxiong"),
        ),
        title=(
            "SimiGrad: Fine-Grained Adaptive Batching for Large Scale Training using Gradient "
            "Similarity Measurement"
        ),
        year=2021,
        book="Advances in Neural Information Processing Systems",
        volume="34",
    ),
    Reference(
        key="smith2017dont",
        authors=("Smith, Samuel L.", "Kindermans, Pieter-Jan", "Ying, Chris", "Le, Quoc V."),
        title="Don't Decay the Learning Rate, Increase the Batch Size",
        year=2017,
        arxiv="1711.00489",
    ),
    Reference(
        key="umeda2024increasing",
        authors=("Umeda, Hikaru", "Iiduka, Hideaki"),
        title=(
            "Increasing Both Batch Size and Learning Rate Accelerates Stochastic Gradient Descent"
        ),
        year=2024,
        arxiv="2409.08770",
    ),
    Reference(
        key="umeda2025adaptive",
        authors=("Umeda, Hikaru", "Iiduka, Hideaki"),
        title=(
            "Adaptive Batch Size and Learning Rate Scheduler for Stochastic Gradient Descent Based "
            "on Minimization of Stochastic First-order Oracle Complexity"
        ),
        year=2025,
        arxiv="2508.05302",
    ),
    Reference(
        key="umeda2025optimal",
        authors=("Umeda, Hikaru", "Iiduka, Hideaki"),
        title=(
            "Optimal Growth Schedules for Batch Size and Learning Rate in SGD that Reduce SFO "
            "Complexity"
        ),
        year=2025,
        arxiv="2508.05297",
    ),
    Reference(
        key="you2019large",
        authors=(
            *("You, Yang", "Hseu, Jonathan", "Ying, Chris", "Demmel, James", "Keutzer, Kurt"),
            "Hsieh, Cho-Jui",
        ),
        title="Large-Batch Training for LSTM and Beyond",
        year=2019,
        arxiv="1901.08256",
    ),
)

REFERENCES: Mapping[str, Reference] = MappingProxyType({paper.key: paper for paper in _PAPERS})
"""Map of BibTeX keys to papers."""
