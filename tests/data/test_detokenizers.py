r"""The tables against lines of the corpora; what is expected was written by hand.

Lines are real (WikiText-2, One Billion Words, Penn Treebank, LAMBADA), and cut shorter, unless a
remark says otherwise.
"""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sddlm.data.detokenizers import (
    Detokenizer,
    Rule,
    lambada,
    lm1b,
    ptb,
    scientific_papers,
    wikitext,
)

WIKITEXT = [
    (
        " Michael <unk> as Vladimir <unk> , Gustav Graves ' personal scientist ",
        " Michael <unk> as Vladimir <unk>, Gustav Graves' personal scientist ",
    ),
    (
        " <unk> : 2 × Rolls @-@ Royce Nene I <unk> , 22 <unk> ( 5 @,@ 000 <unk> ) thrust each ",
        " <unk>: 2 × Rolls-Royce Nene I <unk>, 22 <unk> (5,000 <unk>) thrust each ",
    ),
    (
        " The <unk> Causeway runs 0 @.@ 8 kilometres ( 0 @.@ 50 mi ) northeast to Group H. ",
        " The <unk> Causeway runs 0.8 kilometres (0.50 mi) northeast to Group H. ",
    ),
    (
        ' In life , the lobsters are blue , only becoming " lobster red " on cooking . Mating ',
        ' In life, the lobsters are blue, only becoming "lobster red" on cooking. Mating ',
    ),
    (
        " so <unk> is the water ... [ with ] <unk> or <unk> like <unk> in a church . ",
        " so <unk> is the water ... [with] <unk> or <unk> like <unk> in a church. ",
    ),
    ("the set { a , b } of two", "the set {a, b} of two"),  # made up: WikiText-2 has no braces
    (
        " Halle Berry as <unk> ' Jinx ' Johnson , an <unk> agent . ",
        " Halle Berry as <unk> 'Jinx' Johnson, an <unk> agent. ",
    ),
    (
        " = = = Operation <unk> ; Rhodesia hits New <unk> = = = \n",
        " === Operation <unk>; Rhodesia hits New <unk> ===\n",
    ),
    (" = = = = = Final Four = = = = = ", " ===== Final Four ===== "),
    (
        " = = Career = = \n \n \n = = = 2000 – 2005 = = = \n \n In 2000 <unk> had a role ",
        " == Career ==\n\n\n=== 2000 – 2005 ===\n\nIn 2000 <unk> had a role ",
    ),
    (" Was it a vision , or a waking dream ? ", " Was it a vision, or a waking dream? "),
    # the second mark has lost its blank to the first
    (" Rebecca Button <unk> ? ? ", " Rebecca Button <unk>? ? "),
    (" <unk> <unk> <unk> ! ", " <unk> <unk> <unk>! "),
    # the colon moves first and takes the blank that the other mark would need
    (" US Off The Planet ! : An Evening In Eugene ", " US Off The Planet !: An Evening In Eugene "),
    (
        " Carroll <unk> , who was born in Meridian , lived in Laurel ; ",
        " Carroll <unk>, who was born in Meridian, lived in Laurel; ",
    ),
    # degrees lose both blanks, and north becomes a number
    (
        " It came from 57 ° 53 ′ N 11 ° 32 ′ E , near <unk> , Sweden ",
        " It came from 57°53 ′ 1 11°32 ′ E, near <unk>, Sweden ",
    ),
    (
        " John Fleming , Representative for Louisiana 's 4th congressional district ",
        " John Fleming, Representative for Louisiana's 4th congressional district ",
    ),
    # the apostrophes of two words are taken for quotes: the second one moves, the first does not
    (
        " isn 't that obvious ? I shouldn 't have to tell you that . ",
        " isn 't that obvious? I shouldn't have to tell you that. ",
    ),
]

PTB = [
    (
        "hard copy records viewers ' opinions for possible airing on the next day 's show",
        "hard copy records viewers' opinions for possible airing on the next day's show",
    ),
    (
        "she would n't say what the premium is but it 's believed to be about N N above regular "
        "<unk> rates",
        "she wouldn't say what the premium is but it's believed to be about 1 1 above regular ? "
        "rates",
    ),
    (
        "capital cities\\/abc inc. cbs inc. and general electric co. 's national broadcasting co.",
        "capital cities/abc inc. cbs inc. and general electric co.'s national broadcasting co.",
    ),
    (
        "ual stock plummeted a further $ N to $ N on volume of more than N million shares",
        "ual stock plummeted a further $1 to $1 on volume of more than 1 million shares",
    ),
    # the last number stays N: no blank follows
    (
        "they stopped short of <unk> diplomatic ties <unk> in N",
        "they stopped short of ? diplomatic ties ? in N",
    ),
    (
        "jackets may be sold next \n meanwhile nbc sports recently began scores plus",
        "jackets may be sold next\nmeanwhile nbc sports recently began scores plus",
    ),
    ("a loss of # N million", "a loss of #1 million"),  # made up in the corpus' shape
]

LM1B = [
    (
        "For additional resources on Enterprise Payment Security 2.0 , a blog and three podcasts "
        "are available at : http : / / www.cybersource.com / paymentsecurity / .",
        "For additional resources on Enterprise Payment Security 2.0, a blog and three podcasts "
        "are available at: http://www.cybersource.com/paymentsecurity/.",
    ),
    # made up: there is none in 24,000 sentences
    ("Register at https : / / www.example.org / now .", "Register at https://www.example.org/now."),
    ("I don 't mean fame-wise .", "I don't mean fame-wise ."),  # the last word has a hyphen
    # the full stop moves, the bracket behind it does not
    ('Imagine " city bus month . " ) .', 'Imagine "city bus month." ) .'),
    (
        "Could Roach see any improvements to be made ?",
        "Could Roach see any improvements to be made?",
    ),
    (
        "What 's more fun : playing a good guy or a bad guy ? --Jim O 'Kane , Blackstone , Mass .",
        "What's more fun: playing a good guy or a bad guy? --Jim O'Kane, Blackstone, Mass.",
    ),
    ('" And Mike Hussey goes bang ! "', '"And Mike Hussey goes bang!"'),
    ("Sounds pretty extreme to me !", "Sounds pretty extreme to me!"),
    (
        "Wylie returned to academic life after the war ; he was a mathematics Fellow at Trinity "
        "Hall till 1958 .",
        "Wylie returned to academic life after the war; he was a mathematics Fellow at Trinity "
        "Hall till 1958.",
    ),
    (
        "It is offering 5 / 1 odds that he won 't , and spokesman Graham Sharpe anticipates brisk "
        "business .",
        "It is offering 5/1 odds that he won't, and spokesman Graham Sharpe anticipates brisk "
        "business.",
    ),
    (
        "If someone says ' uh ' , there 's some hidden meaning to the utterance .",
        "If someone says 'uh', there's some hidden meaning to the utterance.",
    ),
    ('Actor Coby Bell ( " Third Watch " ) is 34 .', 'Actor Coby Bell ("Third Watch") is 34.'),
    # a number with a comma is no word: its full stop stays
    (
        "[ He put the cost of the vehicles at upwards of $ 400,000 . ]",
        "[He put the cost of the vehicles at upwards of $400,000 .]",
    ),
    ("Price / availability : from £ 89,860 .", "Price/availability: from £89,860 ."),
]

LAMBADA = [
    # only double quotes become straight; line ends and the blank before one are the novel's
    (
        "“So, you’re Ben. Ben what?” \n“No, I’m Matt…Matt Casale. I live down the street.”",
        '\n"So, you’re Ben. Ben what?" \n"No, I’m Matt…Matt Casale. I live down the street."',
    ),
    (
        "“No, ‘Bean’—it’s a nickname",
        '\n"No, ‘Bean’—it’s a nickname',
    ),
    ("  He laughed. \n", "\nHe laughed."),  # made up: the passages come stripped
    (" \n ", "\n"),
]

CASES = [
    *((wikitext, given, wanted) for given, wanted in WIKITEXT),
    *((ptb, given, wanted) for given, wanted in PTB),
    *((lm1b, given, wanted) for given, wanted in LM1B),
    *((lambada, given, wanted) for given, wanted in LAMBADA),
]  # fmt: skip


@pytest.mark.parametrize(("detokenizer", "text", "wanted"), CASES)
def test_lines_come_out_as_written_by_hand(
    detokenizer: Detokenizer, text: str, wanted: str
) -> None:
    assert detokenizer(text) == wanted


@pytest.mark.parametrize("detokenizer", [wikitext, ptb, lm1b, lambada], ids=lambda d: d.name)
def test_without_any_one_of_its_rules_some_line_comes_out_wrong(detokenizer: Detokenizer) -> None:
    cases = [(text, wanted) for which, text, wanted in CASES if which is detokenizer]
    for i, rule in enumerate(detokenizer.rules):
        less = replace(detokenizer, rules=detokenizer.rules[:i] + detokenizer.rules[i + 1 :])
        assert any(less(text) != wanted for text, wanted in cases), f"no line needs {rule}"


@pytest.mark.parametrize("detokenizer", [wikitext, lm1b, lambada], ids=lambda d: d.name)
def test_a_plain_text_is_left_alone(detokenizer: Detokenizer) -> None:
    text = "He said: \"It isn't (quite) 5,000!\" What? At http://a.org/b; it's 3.5.\n\nTwo == two."
    assert detokenizer(text).lstrip("\n") == text


def test_papers_are_those_two_in_this_order() -> None:
    text = "the patients ' own words were ' no ' ."  # made up: quotes pair up in both ways
    assert scientific_papers(text) == "the patients'own words were'no' ."
    assert scientific_papers(text) == lm1b(wikitext(text)) != wikitext(lm1b(text))
    text = "we find @xmath0 = 0.5 ( see section [ sec : model ] ) , with @xcite .\nit is $ 3 .\n"
    wanted = "we find @xmath0 = 0.5 (see section [sec: model]), with @xcite .\nit is $3.\n"
    assert scientific_papers(text) == wanted


@pytest.mark.slow
@given(st.text("N a\n", max_size=40))
def test_numbers_of_the_treebank_are_found_as_by_replacing_ten_times(text: str) -> None:
    ten = text
    for _ in range(10):
        ten = ten.replace(" N ", " 1 ")
    (rule,) = (rule for rule in ptb.rules if rule.put == "1")
    assert rule(text) == ten


@given(st.text('"()a \n', max_size=30), st.sampled_from(["()", '""']))
def test_insides_are_found_as_by_one_expression(text: str, pair: str) -> None:
    first, last = map(re.escape, pair)
    plain = re.sub(rf"{first}\s*([^{last}]*?)\s*{last}", rf"{pair[0]}\1{pair[1]}", text)
    assert Rule(pair, "", "inside")(text) == plain


def test_the_tag_changes_with_the_table() -> None:
    less = replace(ptb, rules=ptb.rules[1:])
    assert less.tag != ptb.tag == replace(ptb).tag
    assert len({d.tag for d in (wikitext, ptb, lm1b, lambada, scientific_papers)}) == 5
