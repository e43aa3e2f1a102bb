"""Rows for which math-verify says otherwise than tests/verdict_table.py, and why the table stands.

Compared as its users do: `verify(parse("$gold$"), parse("$response$"))`, and any gold of several.
"""

from __future__ import annotations

# fmt: off
DISAGREEMENTS = {
    # explanation: [(kind, gold, response), ...]
    "It does not read this spelling of a number or unit.": [
        ("integer", "1000", "1e3"), ("integer", "12 cm", "12 centimeters"),
        ("integer", "12 cm^2", "12 square centimeters"), ("integer", "12", "12 km/h"), ("integer", "5", r"\$5"),
        ("integer", "-5", "-$5"), ("integer", "5", "**5**"), ("number", "4.5", "4 1/2"), ("number", "1500", "1.5e3"),
        ("number", "4.5", "4½"), ("number", "0.5", "½"), ("number", "0.125", "⅛"), ("number", "-0.5", "-½"),
        ("number", "0.001", "10⁻³"), ("number", "1500", "1.5*10**3"), ("number", "1500", "15e2"),
        ("number", r"5\sqrt{3}", "5√3"), ("number", r"\sqrt{12}", "√12"), ("number", "0.866", "√3/2"),
        ("rounded", "1.5e3", "1500"),
        ("number", r"5\pi", "5pi"), ("number", r"25\pi", "25*pi"),
    ],
    "It drops units, the wrong ones too.": [
        ("integer", "12 cm", "12 m"), ("number", "2.5 cm", "2.5 m"), ("chart_relaxed", "14 cm", "14 m"),
    ],
    "It picks an expression out of a text that says more, or something else.": [
        ("integer", "5", "5 and 5"), ("integer", "5", "not = 5"), ("integer", "5", r"x \not= 5"),
        ("latex", "35", "B. 35"), ("latex", r"\{3, 4\}", r"\boxed{3}, \boxed{4}"),
    ],
    "It computes, so that an answer may be the question's own arithmetic.": [
        ("integer", "5", "5²"), ("integer", "5", "10/2"), ("integer", "5", "--5"), ("number", "0.5", "1/2/1"),
        ("number", "0.5", r"\frac{1}{2}\frac{1}{1}"), ("number", "1000", "10^3^1"),
        ("number", r"5\sqrt{3}", r"\sqrt{3}5"), ("number", r"2\pi", r"\pi 2"), ("number", "391", "17*23"),
        ("number", "7", "3+4"), ("number", "5", r"\sqrt{3^2+4^2}"), ("number", "5", r"\sqrt{9+16}"),
        ("number", "6", r"2 \cdot 3"), ("latex", "391", r"17 \cdot 23"), ("latex", "25", "5^2"), ("latex", "6", "3!"),
    ],
    "It reads any nesting; here brackets end after a few, and a list in a list is none.": [
        ("latex", "2x", "(((((((((2x)))))))))"), ("list", "[1, 3]", "[1, [3]]"),
    ],
    "It takes the last side of any equation.": [
        ("integer", "5", "2x = 5"), ("integer", "5", "4 = 5"), ("integer", "5", "x = 4 = 5"), ("latex", "5", "4 = 5"),
    ],
    "A number may be within the tolerance.": [
        ("number", "100", "101"), ("number", "100", "99"), ("number", "-100", "-101"), ("number", "8.66", r"5\sqrt{3}"),
        ("number", r"5\sqrt{3}", "8.66"), ("number", "0.866", r"\frac{\sqrt{3}}{2}"),
        ("number", "0.866", r"\frac12\sqrt3"), ("number", "-0.866", r"-\frac{\sqrt{3}}{2}"),
        ("number", "1.472", r"-3+2\sqrt{5}"), ("number", "7.472", r"3+2\sqrt{5}"), ("number", "7.472", r"2\sqrt{5}+3"),
        ("number", "0.382", r"\frac{3-\sqrt{5}}{2}"), ("number", "12.944", r"2(3+2\sqrt{5})-2"),
        ("number", r"5\pi", "15.7"), ("number", r"\frac{\pi}{3}", "1.047 rad"),
        ("number", "0.3333", "1/3 ≈ 0.333"),
    ],
    "A number may be given with more decimals than were asked for.": [
        ("rounded", "1.2", "1.23"), ("rounded", "1.2", "1.15"), ("rounded", "1.2", "1.25"),
        ("rounded", "1.20", "1.204"),
        ("rounded", "0.0", "0.04"), ("rounded", "0.0", "-0.04"), ("rounded", "-4.3", "-4.28"),
        ("rounded", "3.5 cm", "3.52 cm"), ("rounded", "24/7\n3.429", "3.4286"),
        ("rounded", r"60.21 \mathrm{m}^2", r"60.208\text{ m}^2"),
    ],
    "An option is named by its letter or its text, which only the record's options can tell.": [
        ("choice", "B", "B."), ("choice", "B", "B)"), ("choice", "B", "B. red"), ("choice", "B", "(B) Red"),
        ("choice", "B", "B: red."), ("choice", "B", "B red"), ("choice", "B", "option B"),
        ("choice", "B", "Choice (B): red"), ("choice", "B", "The answer is B."), ("choice", "B", "red"),
        ("choice", "red", "B"), ("choice", "red", "RED"), ("choice", "A", "$35$"), ("choice", "C", r"5 \sqrt { 3 }"),
        ("choice", "C", r"C. $5\sqrt{3}$"), ("choice", "D", "none of the above"), ("choice", "B", "B. 35"),
        ("choice", "B", "(B) 35"), ("choice", "A", "A. same"), ("choice", "L", "L. opt l"), ("choice", "K", "opt k"),
        ("choice", "Canada", "A"), ("choice", "A, C", "AC"), ("choice", "A, C", "35, C"),
        ("choice", "A, B, D", "A, B, and D"), ("choice", "red and blue", "B"), ("choice", "(B)", "red"),
        ("choice", "(C)", "C. B"), ("choice", "D", "IV"), ("choice", "A", "I"),
    ],
    "Letters are a product to it, without order, case or space.": [
        ("choice", "China", "Chain"), ("text", "listen", "silent"), ("text", "silent", "listen"), ("text", "no", "on"),
        ("text", "China", "Chain"), ("text", "Male", "Lame"), ("text", "AB", "BA"), ("text", "35 cm", "35cm"),
        ("latex", "Male", "Lame"), ("latex", "A", "a"), ("latex", "2A", "2a"), ("latex", "AB", "BA"),
        ("latex", "ab", "a b"), ("latex", "listen", "silent"), ("latex", "no", "on"), ("latex", "China", "Chain"),
    ],
    "It reads a hedge as a set.": [
        ("choice", "A, C", "A or C"),
    ],
    "Words are compared as words: white space, case and what is written around them do not count.": [
        ("text", "New York", "  new\n york "), ("text", "café", "cafe\u0301"), ("text", "Straße", "STRASSE"),
        ("text", "Blue", "Blue."), ("text", "Blue", "The answer is Blue."), ("text", "Blue", "**Blue**"),
        ("text", "transformer\nstep-down transformer", "Step-down transformer"), ("text", "U.S.", "U.S"),
        ("latex", "5x", "the answer is 5x"), ("chart_relaxed", "Blue", "Blue."),
    ],
    "A list may stand in any brackets or none, and its words and decimals are compared as such.": [
        ("list", "[2014, 2016]", "2014, 2016"), ("list", "[2014, 2016]", "2014 and 2016"),
        ("list", "[2014, 2016]", "(2014, 2016)"), ("list", "2014, 2016", "[2014, 2016]"),
        ("list", "[2011, 2012]", r"\{2011, 2012\}"), ("list", r"(3, 5\sqrt{2})", "(3, 5√2)"),
        ("list", "[0.5, 100]", "[0.501, 100]"), ("list", "[red, blue]", "red and Blue"),
        ("list", "[0, 2, 0, 2]", "0, 2, 0, 2"), ("chart_relaxed", "[2014, 2016]", "2014, 2016"),
    ],
    "Numbers read off a chart may be 5 % off.": [
        ("chart_relaxed", "14", "14.5"), ("chart_relaxed", "3", "3.1"), ("chart_relaxed", "14", "14.7"),
        ("chart_relaxed", "14", "13.3"),
        ("chart_relaxed", "0.57", "0.58"), ("chart_relaxed", "2017.0", "2016"), ("chart_relaxed", "2500", "2450"),
        ("chart_relaxed", "3.0", "3.1"), ("chart_relaxed", "1234567", "1.23e6"), ("chart_relaxed", "14\n15.5", "15.4"),
    ],
}
# fmt: on

# Each comes to its alarm, or to an end of the process: they are not asked.
ENDLESS = [
    ("latex", "1", "9**9**9**9"), ("latex", "1", "(99999999)!"), ("latex", "2x", "x^{9^{9^9}}"),
    ("latex", "2x", "x^{99999}"),
]  # fmt: skip

# Where math-verify 0.9.0 and mathruler 0.1.0 are known to differ, or one of them to be wrong: who accepts the pair.
PUBLISHED = {
    "math-verify": [
        ("text", "listen", "silent"), ("text", "China", "Chain"), ("text", "Male", "Lame"),
        ("latex", "listen", "silent"),
        ("text", "AB", "BA"), ("number", "0.5", "50%"), ("latex", "0.12", "12%"), ("latex", "12%", "0.12"),
        ("latex", "35", "B. 35"), ("latex", "4", "8/2"), ("latex", "4", r"\sqrt{16}"), ("number", "1/2", "2/4"),
        ("latex", r"\frac{2}{4}", r"\frac{1}{2}"), ("latex", "5", "4 = 5"),
        ("latex", r"\{3, 4\}", r"\boxed{3}, \boxed{4}"),
    ],
    "both": [
        ("text", "no", "on"), ("integer", "12", "12%"), ("integer", "50", "50%"), ("number", "50", "50%"),
        ("latex", "50", r"50\%"), ("latex", "A", "a"), ("number", "0.5", "1/2"), ("latex", "4.5", r"4\frac12"),
        ("latex", "17", r"17^\circ"), ("latex", "10 cm", "10"), ("integer", "5", "x=5"), ("latex", "1,234", "1234"),
    ],
    "neither": [
        ("list", "[2011, 2012]", r"\{2011, 2012\}"), ("number", r"5\pi", "15.7"), ("latex", r"5\pi", "15.7"),
        ("latex", r"9\sqrt3", "15.588"),
    ],
    "mathruler hangs": [("latex", "1", "9**9**9**9"), ("latex", "1", "(99999999)!")],
}  # fmt: skip
