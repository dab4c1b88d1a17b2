"""Decides which thresholds the heuristic rules have in which language.

The papers' numbers are English ones. What depends on the language is the length of its words, its
stop words and the phrases of its cookie banners; with the English ones, hardly a German page has
two stop words. A language without an entry is judged by everything but stop words and phrases.
The stop words are each language's most frequent function words; two different ones are asked for,
as Gopher asks (Rae et al. 2021, table A1).
"""

from __future__ import annotations

from dataclasses import dataclass

_STOP_WORDS = {
    "en": "the be to of and that have with",  # Gopher's own eight
    "de": "der die das und in zu den von mit ist nicht ein eine auf für im dem des sich werden",
    "es": "el la de que y en los las un una por con para es se del al no su como",
    "fr": "le la les de des et en un une du dans que qui est pour par sur pas au plus",
    "it": "il la le di che e un una in per con del della è non si dei gli da sono",
    "pt": "o a os as de que e em um uma do da para com não por se dos no na",
    "nl": "de het een en van in is dat op te voor met zijn niet aan er ook bij door om",
    "sv": "och i att det som en på är av för med den till inte om ett har de kan var",
    "da": "og i at det som en på er af for med den til ikke om et har de kan var",
    "no": "og i at det som en på er av for med den til ikke om et har de kan var",
    "fi": "ja on ei se että oli mutta kun hän joka myös ovat tai kuin niin voi sen ole",
    "pl": "i w na z do się nie to że jest o jak po od za są dla przez oraz co",
    "cs": "a v se na je to že s z do o i za pro jako by ale jsou které k",
    "sk": "a v sa na je to že s z do o i za pre ako by ale sú ktoré k",
    "sl": "in v je na se da za so z ki tudi ne s od pa kot po bi ali pri",
    "hr": "i u je na se da za su s od koji kao ne o iz što do ili po",
    "ro": "și de în a la cu nu o pe este un din care să pentru mai se ce sunt",
    "hu": "a az és hogy nem is egy ez meg volt de csak már mint vagy el van ki",
    "tr": "ve bir bu da de için ile olarak çok daha ne gibi en olan sonra kadar ama",
    "ca": "el la de que i en els les un una per amb és es del al no com més",
    "id": "dan yang di dengan untuk dari ini pada dalam tidak adalah itu ke akan oleh",
    "vi": "và của là có trong cho được không với các một những người này để đã",
    "el": "και το να του η της με που την από για είναι ο τα στο δεν τον",
    "ru": "и в не на что с по как это он но из за к от для а у же",
    "uk": "і в не на що з та як це до за від у для й але про також",
    "bg": "и на в да се за от с е не по като са че до но или при",
    "ar": "في من على أن إلى هذا التي عن مع لا ما هو كان الذي هذه",
    "he": "של את על לא זה עם הוא היא גם אני או כי אם יש מה",
    "fa": "و در به از که این را با است برای آن یک تا هم می",
    "hi": "के में है की और से का को पर यह कि भी एक नहीं ने हैं",
    "zh": "的 是 在 了 不 和 有 我 他 这 个 人 中 大 也",
    "ja": "の に は を た が で て と し れ さ も な い",
    "ko": "이 그 및 수 있는 것은 그리고 있다 한 등 위해 대한 또는 할 것이다",
}
# (shortest, longest) mean length of a word; Gopher's English range is (3, 10).
_WORD_LENGTH = {
    "de": (3, 11),
    "nl": (3, 11),
    "fi": (3, 14),
    "hu": (3, 13),
    "tr": (3, 12),
    "et": (3, 13),
    "eu": (3, 12),
    "ka": (3, 13),
    "ta": (3, 14),
    "te": (3, 14),
    "ml": (3, 16),
    "kn": (3, 14),
    "ru": (3, 11),
    "uk": (3, 11),
    "vi": (2, 8),
    "ko": (1.5, 8),
    "ar": (2, 10),
    "he": (2, 10),
    "fa": (2, 10),
    "hi": (2, 10),
    # Every character is a word (pretrain/data/words.py).
    **dict.fromkeys(("zh", "ja", "th", "lo", "km", "my", "bo"), (1, 3)),
}
# Least share of words with a letter, 0.8 in Gopher. German's is where as many pages of the same
# manuals fall as in English at 0.8; Spanish needs no change; the others were not measured.
_ALPHA_WORDS = {"en": 0.8, "es": 0.8, "de": 0.78}
_ALPHA_WORDS_ELSEWHERE = 0.77
_POLICY = {
    "en": "terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies",
    "de": "nutzungsbedingungen|datenschutzerklärung|cookie-richtlinie|verwendet cookies|"
    "verwendung von cookies|nutzung von cookies",
    "es": "términos de uso|condiciones de uso|política de privacidad|política de cookies|"
    "utiliza cookies|uso de cookies|usa cookies",
    "fr": "conditions d'utilisation|politique de confidentialité|utilise des cookies|"
    "utilisation de cookies|utilisation des cookies",
    "it": "termini di utilizzo|informativa sulla privacy|utilizza cookie|utilizzo dei cookie",
    "pt": "termos de uso|política de privacidade|política de cookies|utiliza cookies|"
    "uso de cookies|usa cookies",
    "nl": "gebruiksvoorwaarden|privacybeleid|cookiebeleid|gebruikt cookies|gebruik van cookies",
}


@dataclass(frozen=True)
class LanguageRules:
    """What depends on the language."""

    word_length: tuple[float, float]  # characters, of the mean word
    alpha_words: float  # least share of words with a letter
    stop_words: frozenset[str]  # empty: unknown, the rule does not apply
    policy: tuple[str, ...]  # lower case
    spaceless: bool  # a character is a word


def rules_for(language: str | None) -> LanguageRules:
    """The rules of a language by its ISO 639-1 code; None and unknown ones get the general ones."""
    code = language or ""
    if code not in _RULES:
        _RULES[code] = _make(code)
    return _RULES[code]


def _make(code: str) -> LanguageRules:
    low, high = _WORD_LENGTH.get(code, (3, 10))
    phrases = _POLICY.get(code, "")
    return LanguageRules(
        word_length=(low, high),
        alpha_words=_ALPHA_WORDS.get(code, _ALPHA_WORDS_ELSEWHERE),
        stop_words=frozenset(_STOP_WORDS.get(code, "").split()),
        policy=tuple(phrases.split("|")) if phrases else (),
        spaceless=high == 3,
    )


_RULES: dict[str, LanguageRules] = {}
