"""Which language an answer is in, measured on sentences of ten languages."""

import pytest

import rewards
from rewards import Outcome, UsageError
from rewards.language import language, share_of
from rewards.registry import check_row

# The same five sentences; the third is too short to tell the language by anything but its script.
SENTENCES = {
    "en": (
        "The train leaves at seven in the morning.",
        "To solve this, we first add the two numbers and then divide by three.",
        "I don't know.",
        "She was reading a book when the phone rang.",
        "The answer is therefore forty two.",
    ),
    "de": (
        "Der Zug fährt um sieben Uhr morgens ab.",
        "Um das zu lösen, addieren wir zuerst die beiden Zahlen und teilen dann durch drei.",
        "Ich weiß es nicht.",
        "Sie las gerade ein Buch, als das Telefon klingelte.",
        "Die Antwort ist also zweiundvierzig.",
    ),
    "fr": (
        "Le train part à sept heures du matin.",
        "Pour résoudre cela, on additionne d'abord les deux nombres puis on divise par trois.",
        "Je ne sais pas.",
        "Elle lisait un livre quand le téléphone a sonné.",
        "La réponse est donc quarante-deux.",
    ),
    "es": (
        "El tren sale a las siete de la mañana.",
        "Para resolver esto, primero sumamos los dos números y luego dividimos entre tres.",
        "No lo sé.",
        "Ella leía un libro cuando sonó el teléfono.",
        "La respuesta es, por tanto, cuarenta y dos.",
    ),
    "it": (
        "Il treno parte alle sette del mattino.",
        "Per risolvere, sommiamo prima i due numeri e poi dividiamo per tre.",
        "Non lo so.",
        "Stava leggendo un libro quando squillò il telefono.",
        "La risposta è quindi quarantadue.",
    ),
    "pt": (
        "O trem parte às sete da manhã.",
        "Para resolver isto, primeiro somamos os dois números e depois dividimos por três.",
        "Não sei.",
        "Ela estava lendo um livro quando o telefone tocou.",
        "A resposta é, portanto, quarenta e dois.",
    ),
    "zh": (
        "火车早上七点开。",
        "要解决这个问题，我们先把两个数相加，然后除以三。",
        "我不知道。",
        "电话响的时候她正在看书。",
        "所以答案是四十二。",
    ),
    "ru": (
        "Поезд отправляется в семь утра.",
        "Чтобы решить это, сначала сложим два числа, а затем разделим на три.",
        "Я не знаю.",
        "Она читала книгу, когда зазвонил телефон.",
        "Следовательно, ответ — сорок два.",
    ),
    "ja": (
        "電車は朝七時に出発します。",
        "これを解くには、まず二つの数を足してから三で割ります。",
        "わかりません。",
        "電話が鳴ったとき、彼女は本を読んでいました。",
        "したがって答えは四十二です。",
    ),
    "ar": (
        "يغادر القطار في السابعة صباحا.",
        "لحل هذه المسألة نجمع العددين أولا ثم نقسم على ثلاثة.",
        "لا أعرف.",
        "كانت تقرأ كتابا عندما رن الهاتف.",
        "إذن الجواب هو اثنان وأربعون.",
    ),
}
GERMAN = " ".join(SENTENCES["de"])
ENGLISH = " ".join(SENTENCES["en"])


def test_fifty_sentences_are_told_from_nine_other_languages():
    right = wrong = 0
    for code, sentences in SENTENCES.items():
        for sentence in sentences:
            right += language(sentence, code).outcome is Outcome.CORRECT
            long = len(sentence) > (8 if code in ("zh", "ja") else 25)
            others = [other for other in SENTENCES if other != code and long]
            wrong += sum(language(sentence, other).value > 0 for other in others)
    assert (right, wrong) == (50, 0)


@pytest.mark.parametrize("code", SENTENCES)
def test_whole_answers(code):
    text = " ".join(SENTENCES[code])
    assert language(text, code).value == 1.0
    other = "en" if code != "en" else "de"
    assert language(text, other).value < 0.2


def test_a_mixture_is_weighed_by_letters():
    score = language(f"{GERMAN}\n{ENGLISH}", "de")
    german = sum(map(str.isalpha, GERMAN))
    both = german + sum(map(str.isalpha, ENGLISH))
    assert score.value == pytest.approx(german / both, abs=0.02)
    assert score.outcome is Outcome.WRONG
    assert language(f"{GERMAN}\n{ENGLISH}", "de", at_least=0.4).value == 1.0


def test_the_thinking_counts_when_asked_for():
    text = f"<think>{ENGLISH}</think>{GERMAN}"
    assert language(text, "de").value == 1.0
    assert language(text, "de", thinking=True).value < 0.6
    assert language("<think>" + GERMAN, "de").outcome is Outcome.UNPARSEABLE


def test_code_mathematics_tags_and_addresses_have_no_language():
    technical = "```python\nfor item in list_of_items: print('the item is', item)\n```"
    formula = r"\[ \text{speed of the train} = \frac{distance}{time} \]"
    assert (
        language(f"{GERMAN}\n{technical}\n{formula}\nhttps://example.org/the/page", "de").value == 1
    )


@pytest.mark.parametrize(
    ("text", "code", "value"),
    [
        ("42", "de", 1.0),
        ("OK", "en", 1.0),
        ("OK", "ru", 0.0),
        ("да", "ru", 1.0),
        ("да", "en", 0.0),
        ("はい", "ja", 1.0),
        ("是的", "ja", 1.0),
        ("はい", "zh", 0.0),
        ("네", "ko", 1.0),
        ("$x^2$", "de", 1.0),
    ],
)
def test_a_short_answer_is_judged_by_its_script(text, code, value):
    score = language(text, code)
    assert score.value == value
    assert "too short" in score.detail
    assert share_of(text, code) == (value, False)


def test_codes():
    assert language(GERMAN, "DE-at").value == 1.0
    norwegian = "Toget går klokken sju om morgenen, og hun leste en bok da telefonen ringte."
    assert language(norwegian, "nb").value == 1.0
    with pytest.raises(UsageError, match="unknown language 'klingon'"):
        rewards.load("language", language="klingon")
    with pytest.raises(UsageError, match="ISO 639-1"):
        check_row(rewards.load("language"), {"language": ""})
    assert rewards.required_columns(rewards.load("language")) == {"language"}
