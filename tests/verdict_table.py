"""The verdicts that the verifiers must give: gold, response, verdict, by answer kind; written by hand.

Several accepted answers are on lines of their own. "list" and "chart_relaxed" take numbers within 1 % and 5 %.
"""

from __future__ import annotations

FOUR = ("35", "red", r"5\sqrt{3}", "None of the above")
TWELVE = tuple(f"opt {letter}" for letter in "abcdefghijkl")
SHUFFLED = ("A", "C", "B")
ROMAN = ("I", "II", "III", "IV")
COUNTRIES = ("Canada", "China", "Chad")
RIGHT, WRONG, UNREAD = (True, True), (False, True), (False, False)

# fmt: off
INTEGERS = [
    # gold, response, (correct, parsed)
    ("5", "5", RIGHT), ("5", " 5\n", RIGHT), ("5", "6", WRONG), ("5", "-5", WRONG), ("-5", "-5", RIGHT),
    ("-5", "−5", RIGHT), ("-5", "- 5", RIGHT), ("5", "+5", RIGHT), ("0", "-0", RIGHT), ("5", "05", RIGHT),  # noqa: RUF001
    ("5", "5.0", RIGHT), ("5", "5.", RIGHT), ("5", "5.5", WRONG), ("5", "5.0000001", WRONG), ("1234", "1,234", RIGHT),
    ("1,234", "1234", RIGHT), ("1234567", "1,234,567", RIGHT), ("1234", "1{,}234", RIGHT),
    ("1234", r"1,\!234", RIGHT), ("12", "1,2", UNREAD), ("1234", "12,34", UNREAD), ("12345", "12,345", RIGHT),
    ("12345", "1,2345", UNREAD), ("1000", "1e3", RIGHT), ("60", "60°", RIGHT), ("60", r"60^\circ", RIGHT),
    ("60", r"$60^{\circ}$", RIGHT), ("60", "60 degrees", RIGHT), ("60°", "60", RIGHT),
    ("60", r"\boxed{60^\circ}", RIGHT), ("60", r"\boxed{60}^\circ", RIGHT), ("12", "12 cm", RIGHT),
    ("12", r"12\text{ cm}", RIGHT), ("12", r"12\,\mathrm{cm}^2", RIGHT), ("12", r"$12$ cm", RIGHT),
    ("12 cm", "12 centimeters", RIGHT), ("12 cm^2", "12 square centimeters", RIGHT), ("12 cm", "12 m", WRONG),
    ("12 cm", "12 cm^2", WRONG), ("12", "12 km/h", RIGHT), ("50", "50%", RIGHT), ("12", "12%", RIGHT),
    ("5", "$5", RIGHT),
    ("5", r"\$5", RIGHT), ("-5", "-$5", RIGHT), ("5", "$5$", RIGHT), ("5", "$$5$$", RIGHT), ("5", r"\(5\)", RIGHT),
    ("5", r"\boxed{5}", RIGHT), ("5", r"$\boxed{\text{5}}$.", RIGHT), ("5", "**5**", RIGHT), ("5", "x=5", RIGHT),
    ("5", "x = 5", RIGHT), ("5", r"x_{1} = \boxed{5}", RIGHT), ("60", r"m\angle ABC = 60^\circ", RIGHT),
    ("5", "The answer is 5.", RIGHT), ("5", "Final answer: 5", RIGHT), ("5", "5 or 6", UNREAD), ("5", "5, 6", UNREAD),
    ("5", "6 5", UNREAD), ("5", "5 and 5", UNREAD), ("5", "5 or six", UNREAD), ("5", "not 5", UNREAD),
    ("5", "not = 5", UNREAD), ("5", "5 thousand", UNREAD), ("5", "5 K", UNREAD), ("5", "5 M", UNREAD),
    ("5", "5!", UNREAD),
    ("5", "5²", UNREAD), ("10", "10^2", UNREAD), ("5", "5x", UNREAD), ("5", r"5\pi", UNREAD),
    ("5", r"5\sqrt{2}", UNREAD), ("5", "2x = 5", UNREAD), ("5", "4 = 5", UNREAD), ("5", r"x \not= 5", UNREAD),
    ("5", r"x \neq 5", UNREAD), ("5", "x = 4 = 5", UNREAD), ("5", "10/2", UNREAD),
    ("5", r"\boxed{5}, \boxed{6}", UNREAD), ("5", r"\boxed{5", UNREAD), ("56", r"\boxed{5}6", UNREAD),
    ("56", "$5$6", UNREAD), ("5", "± 5", UNREAD), ("5", "--5", UNREAD), ("5", "five", UNREAD), ("5", "٥", UNREAD),  # noqa: RUF001
    ("5", "５", UNREAD), ("5", "", UNREAD), ("5", "nan", UNREAD), ("5", "0x5", UNREAD), ("5", "1_0", UNREAD),  # noqa: RUF001
]

NUMBERS = [
    ("0.5", "0.5", RIGHT), ("0.5", ".5", RIGHT), ("0.5", "1/2", RIGHT), ("1/2", "2/4", RIGHT), ("0.5", "-1/2", WRONG),
    ("-0.5", r"-\frac{1}{2}", RIGHT), ("-0.5", r"\frac{-1}{2}", RIGHT), ("0.5", r"\frac12", RIGHT),
    ("0.5", r"$\dfrac{1}{2}$", RIGHT), ("4.5", r"4\frac{1}{2}", RIGHT), ("4.5", "4 1/2", RIGHT),
    ("4.5", "9/2", RIGHT), ("4.5", "4 3/2", UNREAD), ("0.5", "50%", RIGHT), ("50%", "0.5", RIGHT),
    ("50%", r"50\%", RIGHT), ("50%", "50 percent", RIGHT), ("50", "50%", RIGHT), ("50%", "50", RIGHT),
    ("1500", "1.5e3", RIGHT), ("1500", r"1.5 \times 10^{3}", RIGHT), ("1500", "1.5×10^3", RIGHT),  # noqa: RUF001
    ("0.0015", "1.5E-3", RIGHT), ("100", "101", RIGHT), ("100", "101.1", WRONG), ("100", "99", RIGHT),
    ("-100", "-101", RIGHT), ("-100", "100", WRONG), ("0", "0", RIGHT), ("0", "0.0", RIGHT), ("0", "1e-300", WRONG),
    ("1,250.5", "1250.5", RIGHT), ("3.14", "x ≈ 3.14", RIGHT), ("2.5", "2.5 cm", RIGHT), ("2.5", "$2.50", RIGHT),
    ("0.5", "1/0", UNREAD), ("0.5", "1/2/1", UNREAD), ("0.5", "0.5 or 0.6", UNREAD), ("0.5", "0,5", UNREAD),
    ("0.5", r"\frac{1}{2}\frac{1}{1}", UNREAD), ("0.5", r"\frac{1}{2}3", UNREAD), ("1.2", "1.2.3", UNREAD),
    ("5", "5e9999", UNREAD), ("5", "inf", UNREAD),
    ("4.5", "4½", RIGHT), ("0.5", "½", RIGHT), ("0.125", "⅛", RIGHT), ("-0.5", "-½", RIGHT), ("0.45", "½", WRONG),
    ("0.001", "10^{-3}", RIGHT), ("0.001", "10⁻³", RIGHT), ("1000", "10^3", RIGHT), ("1500", "1.5*10**3", RIGHT),
    ("1500", r"1.5 \cdot 10^3", RIGHT), ("1500", "15e2", RIGHT), ("1000", "10^3^1", UNREAD),
    ("8.66", r"5\sqrt{3}", RIGHT), (r"5\sqrt{3}", "8.66", RIGHT), (r"5 \sqrt { 3 }", r"5\sqrt3", RIGHT),
    (r"5\sqrt{3}", "5√3", RIGHT), (r"5\sqrt{3}", "5*sqrt(3)", RIGHT), (r"5\sqrt{3}", r"\sqrt{75}", RIGHT),
    (r"5\sqrt{3}", r"\frac{15}{\sqrt{3}}", RIGHT), (r"5\sqrt{3}", r"5 \cdot \sqrt{3}", RIGHT),
    (r"5\sqrt{3}", r"5\sqrt{3} cm", RIGHT), (r"5\sqrt{3}", r"x = 5\sqrt{3}", RIGHT),
    (r"5\sqrt{3}", r"$5\sqrt{3}$ cm", RIGHT), (r"5\sqrt{3}", r"-5\sqrt{3}", WRONG), (r"5\sqrt{3}", r"5\sqrt{2}", WRONG),
    (r"5\sqrt{3}", r"\sqrt{53}", WRONG), (r"5\sqrt{3}", "5 3", UNREAD), (r"5\sqrt{3}", r"5\sqrt{3} or 9", UNREAD),
    (r"5\sqrt{3}", r"\sqrt{3}5", UNREAD), (r"\sqrt{12}", r"2\sqrt{3}", RIGHT), (r"\sqrt{12}", r"\sqrt12", UNREAD),
    (r"\sqrt{12}", "√12", RIGHT), ("2", r"\sqrt[3]{8}", RIGHT), ("2", r"\sqrt[3]{9}", WRONG),
    ("4", r"\sqrt{16}", RIGHT),
    ("0.866", r"\frac{\sqrt{3}}{2}", RIGHT), ("0.866", "√3/2", RIGHT), ("0.866", r"\frac12\sqrt3", RIGHT),
    ("-0.866", r"-\frac{\sqrt{3}}{2}", RIGHT), ("1.472", r"-3+2\sqrt{5}", RIGHT), ("7.472", r"3+2\sqrt{5}", RIGHT),
    ("7.472", r"2\sqrt{5}+3", RIGHT), ("0.382", r"\frac{3-\sqrt{5}}{2}", RIGHT), ("12.944", r"2(3+2\sqrt{5})-2", RIGHT),
    (r"5\pi", "15.7", RIGHT), (r"5\pi", "5π", RIGHT), (r"5\pi", "5pi", RIGHT), (r"5\pi", "5", WRONG),
    (r"25\pi", r"25\pi \text{ cm}^2", RIGHT), (r"25\pi", "25*pi", RIGHT), (r"\frac{\pi}{3}", "π/3", RIGHT),
    (r"\frac{\pi}{3}", r"\frac{1}{3}\pi", RIGHT), (r"\frac{\pi}{3}", "1.047 rad", RIGHT), (r"2\pi", r"\pi 2", UNREAD),
    (r"2\pi", "2pie", UNREAD), (r"2\pi", r"2\pi r", UNREAD), (r"2\pi", r"1/2\pi", UNREAD),
    ("391", "17*23", UNREAD), ("7", "3+4", UNREAD), ("5", r"\sqrt{3^2+4^2}", UNREAD), ("5", r"\sqrt{9+16}", UNREAD),
    ("6", r"2 \cdot 3", UNREAD), ("9.42", r"3+4+\pi", UNREAD),
    ("18.85", r"2*3\pi", UNREAD), ("18.85", r"(2)(3)\pi", UNREAD), ("1", r"\frac{\pi}{\pi}", RIGHT),
    ("1", r"\frac{1}{\sqrt{2}-\sqrt{2}}", UNREAD), ("1", r"\sqrt{-1}", UNREAD), ("1", r"\sqrt{}", UNREAD),
    ("1", "((((((((pi))))))))", UNREAD), ("60", "60°", RIGHT), ("60°", "60˚", RIGHT), ("1,200", r"1{,}200", RIGHT),
    ("2.5 cm", "2.5 m", WRONG), ("2.5 cm", "2.5", RIGHT), ("12%", "0.12", RIGHT), ("0.12", r"12\%", RIGHT),
    ("0.3333", "1/3 ≈ 0.333", RIGHT), ("0.5", "50 %", RIGHT), ("0.75", "3 / 4", RIGHT), ("0.75", r"\tfrac34", RIGHT),
    ("2/4", r"\frac{1}{2}", RIGHT), ("-3/4", r"\frac{-3}{4}", RIGHT), ("2.5\n5/2 cm", "2.5 m", RIGHT),
]

ROUNDED = [
    # A gold with decimals takes what rounds to it, one without takes itself.
    ("1.2", "1.2", RIGHT), ("1.2", "1.20", RIGHT), ("1.2", "1.23", RIGHT), ("1.2", "1.15", RIGHT),
    ("1.2", "1.25", RIGHT), ("1.2", "1.26", WRONG), ("1.2", "1.14", WRONG), ("1.2", "-1.2", WRONG),
    ("1.20", "1.2", RIGHT), ("1.20", "1.21", WRONG), ("1.20", "1.204", RIGHT), ("0.0", "0.04", RIGHT),
    ("0.0", "0", RIGHT), ("0.0", "-0.04", RIGHT), ("-4.3", "-4.28", RIGHT), ("-4.3", "4.3", WRONG),
    ("131253.5", "131,253.5", RIGHT), ("131253.5", "131253.6", WRONG), ("4", "4.0", RIGHT), ("4", "4.4", WRONG),
    ("4", "3.9", WRONG), ("6/5", "1.2", RIGHT), ("6/5", "1.21", WRONG), (r"4\sqrt{6}", r"\sqrt{96}", RIGHT),
    (r"4\sqrt{6}", "9.8", WRONG), ("3.5 cm", "3.52 cm", RIGHT), ("3.5 cm", "3.52 m", WRONG), ("1.2%", "1.23%", WRONG),
    ("1.2%", "0.012", RIGHT), ("1.5e3", "1500", RIGHT), ("1.5e3", "1500.04", WRONG), ("1.2", "1.2 or 1.3", UNREAD),
    ("1.2", "about 1.2", UNREAD), ("24/7\n3.429", "3.4286", RIGHT), ("24/7\n3.429", "24/7", RIGHT),
    (r"60.21 \mathrm{m}^2", "60.2", WRONG), (r"60.21 \mathrm{m}^2", r"60.208\text{ m}^2", RIGHT),
]

CHOICES = [
    # gold, response, options, (correct, parsed)
    ("B", "B", FOUR, RIGHT), ("B", "b", FOUR, RIGHT), ("B", "(B)", FOUR, RIGHT), ("B", "[b]", FOUR, RIGHT),
    ("B", "B.", FOUR, RIGHT), ("B", "B)", FOUR, RIGHT), ("B", "B. red", FOUR, RIGHT), ("B", "(B) Red", FOUR, RIGHT),
    ("B", "B: red.", FOUR, RIGHT), ("B", "B red", FOUR, RIGHT), ("B", "option B", FOUR, RIGHT),
    ("B", "Choice (B): red", FOUR, RIGHT), ("B", "The answer is B.", FOUR, RIGHT),
    ("B", r"\boxed{\text{B}}", FOUR, RIGHT), ("B", "red", FOUR, RIGHT), ("red", "B", FOUR, RIGHT),
    ("red", "RED", FOUR, RIGHT), ("A", "$35$", FOUR, RIGHT), ("C", r"5 \sqrt { 3 }", FOUR, RIGHT),
    ("C", r"C. $5\sqrt{3}$", FOUR, RIGHT), ("D", "none of the above", FOUR, RIGHT), ("B", "A", FOUR, WRONG),
    ("B", "35", FOUR, WRONG), ("B", "A. 35", FOUR, WRONG), ("B", "B. 35", FOUR, UNREAD), ("A", "B. 35", FOUR, UNREAD),
    ("A", "A or B", FOUR, UNREAD), ("A", "A or B or C", FOUR, UNREAD), ("A", "A, B", FOUR, UNREAD),
    ("A", "A. 35 or B. red", FOUR, UNREAD), ("A", "AB", FOUR, UNREAD), ("A", "A A", FOUR, UNREAD),
    ("A", "not A", FOUR, UNREAD), ("A", "A. not A", FOUR, UNREAD), ("A", "A. not A", None, UNREAD),
    ("A", "A. A is wrong", None, UNREAD),
    ("A", "A? no", FOUR, UNREAD), ("A", "-A", FOUR, UNREAD), ("A", "A. no, another one", FOUR, UNREAD),
    ("A", "Apple", FOUR, UNREAD), ("A", "E", FOUR, UNREAD), ("A", "blue", FOUR, UNREAD), ("L", "L", None, RIGHT),
    ("A", "M", None, UNREAD), ("B", "B. 35", None, RIGHT), ("B", "(B) 35", None, RIGHT), ("B", "B 35", None, UNREAD),
    ("B", "B. 35, C. 40", None, UNREAD), ("B", "B. 35 or the third", None, UNREAD),
    # Two options of one text: only the letter tells them apart.
    ("A", "same", ("same", "same"), UNREAD), ("A", "A. same", ("same", "same"), RIGHT),
    ("B", "A. same", ("same", "same"), WRONG),
    # An option whose text is another option's letter.
    ("B", "A", ("x", "A", "y"), UNREAD), ("A", ".", ("", "red"), UNREAD),
    # Options in another order than their texts, as MMMU-Pro shuffles them: the gold in brackets asks for the letter.
    ("(C)", "C", SHUFFLED, RIGHT), ("(C)", "(C)", SHUFFLED, RIGHT), ("(C)", "C. B", SHUFFLED, RIGHT),
    ("(C)", "B", SHUFFLED, WRONG), ("(C)", "B. C", SHUFFLED, WRONG), ("(C)", "C. C", SHUFFLED, UNREAD),
    ("(C)", "B, C", SHUFFLED, UNREAD), ("(B)", "red", FOUR, RIGHT), ("(C)", "(C)", ("(a)", "(c)", "(b)"), RIGHT),
    ("(C)", "c", ("(a)", "(c)", "(b)"), RIGHT), ("(C)", "(b)", ("(a)", "(c)", "(b)"), WRONG),
    # A letter past the options is no letter, so a text may be one.
    ("D", "IV", ROMAN, RIGHT), ("D", "I", ROMAN, WRONG), ("A", "I", ROMAN, RIGHT), ("D", "E", ROMAN, UNREAD),
    # Twelve options, as in MMMU-Pro, whose I and J other parsers miss.
    ("I", "I", TWELVE, RIGHT), ("I", "(I)", TWELVE, RIGHT), ("J", "(J)", TWELVE, RIGHT),
    ("L", "L. opt l", TWELVE, RIGHT),
    ("J", "I", TWELVE, WRONG), ("I", "I think it is J", TWELVE, UNREAD), ("A", "A bird", TWELVE, UNREAD),
    ("K", "opt k", TWELVE, RIGHT), ("K", "opt", TWELVE, UNREAD),
    # First letters are no answers: an evaluator took any gold with a capital for a letter.
    ("Canada", "China", COUNTRIES, WRONG), ("Canada", "Canada", COUNTRIES, RIGHT), ("Canada", "C", COUNTRIES, WRONG),
    ("Canada", "A", COUNTRIES, RIGHT), ("China", "Chain", COUNTRIES, UNREAD), ("B", "USA", FOUR, UNREAD),
    # Several right options: on lines, any one will do; with commas, all are needed.
    ("A\nC", "A", FOUR, RIGHT), ("A\nC", "C", FOUR, RIGHT), ("A\nC", "B", FOUR, WRONG),
    ("A\nC", "A or C", FOUR, UNREAD),
    ("A\nC", "A, C", FOUR, UNREAD), ("A, C", "A, C", FOUR, RIGHT), ("A, C", "C and A", FOUR, RIGHT),
    ("A, C", "AC", FOUR, RIGHT), ("A, C", "(A), (C)", FOUR, RIGHT), ("A, C", "35, C", FOUR, RIGHT),
    ("A, C", "A", FOUR, WRONG), ("A, C", "A, B", FOUR, WRONG), ("A, C", "A, B, C", FOUR, WRONG),
    ("A, C", "A or C", FOUR, UNREAD), ("A, C", "A, A", FOUR, UNREAD), ("A, C", "ABCD", FOUR, WRONG),
    ("A, B, D", "A, B, and D", FOUR, RIGHT), ("red and blue", "B", ("red", "red and blue"), RIGHT),
]

TEXTS = [
    ("Blue", "blue", RIGHT), ("New York", "  new\n york ", RIGHT), ("café", "cafe\u0301", RIGHT),
    ("Straße", "STRASSE", RIGHT), ("Blue", "Black", WRONG), ("listen", "silent", WRONG), ("Blue", "Blue.", RIGHT),
    ("Blue", "the blue", WRONG), ("Blue", "blue or red", WRONG), ("Blue", "bl\u200bue", WRONG), ("None", "", UNREAD),
    ("Blue", r"\boxed{Blue}", RIGHT), ("Blue", r"\text{blue}", RIGHT), ("Blue", "The answer is Blue.", RIGHT),
    ("Blue", "**Blue**", RIGHT), ("Blue", "blues", WRONG), ("Blue", "B", WRONG), ("silent", "listen", WRONG),
    ("no", "on", WRONG), ("China", "Chain", WRONG), ("Male", "Lame", WRONG), ("AB", "BA", WRONG),
    ("Canada", "China", WRONG),
    ("Yes", "yes", RIGHT), ("Yes", "No", WRONG), ("Yes", "yes no", WRONG), ("Yes", "not yes", WRONG),
    ("transformer\nstep-down transformer", "Step-down transformer", RIGHT), ("colour\ncolor", "Color", RIGHT),
    ("colour\ncolor", "colour color", WRONG), ("colour\ncolor", "colour or color", WRONG), ("U.S.", "U.S", RIGHT),
    ("1:2", "1:2", RIGHT), ("1:2", "2:1", WRONG), ("35 cm", "35cm", WRONG), ("é", "e", WRONG), ("Iowa", "lowa", WRONG),
]

LATEX = [
    # Golds that are numbers: compared exactly, and never computed.
    ("48", "48", RIGHT), ("48", "48.0", RIGHT), ("48", "48 cm", RIGHT), ("17", r"17^\circ", RIGHT),
    (r"17^\circ", "17", RIGHT),
    (r"17^\circ", "17°", RIGHT), ("5 \\sqrt { 3 }", r"5\sqrt{3}", RIGHT), (r"5\sqrt{3}", r"\sqrt{75}", RIGHT),
    (r"5\sqrt{3}", "8.66", WRONG), (r"9\sqrt3", "15.588", WRONG), (r"5\pi", "15.7", WRONG), (r"5\pi", "5π", RIGHT),
    ("0.5", r"\frac{1}{2}", RIGHT), (r"\frac{1}{2}", "1/2", RIGHT), (r"\frac{2}{4}", r"\frac{1}{2}", RIGHT),
    ("4.5", r"4\frac12", RIGHT), ("391", r"17 \cdot 23", UNREAD), ("25", "5^2", UNREAD), ("5", "4 = 5", UNREAD),
    ("5", "x = 5", RIGHT), ("35", "B. 35", UNREAD), ("3", r"\boxed{3} or \boxed{4}", UNREAD), ("50", r"50\%", RIGHT),
    ("0.5", r"50\%", RIGHT), ("1,234", "1234", RIGHT), ("10 cm", "10", RIGHT), ("13.5", "13.46", WRONG),
    ("4", "8/2", RIGHT), ("4", r"\sqrt{16}", RIGHT), ("12", r"12\%", RIGHT), ("0.12", "12%", RIGHT),
    ("12%", "0.12", RIGHT),
    ("[2011, 2012]", r"\{2011, 2012\}", WRONG), ("3", r"\{3, 4\}", UNREAD),
    (r"\{3, 4\}", r"\boxed{3}, \boxed{4}", UNREAD),
    ("Male", "Lame", UNREAD), (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", RIGHT),
    (r"2+\sqrt{3}", r"\sqrt{3}+2", RIGHT),
    ("387420489", "9**9", UNREAD), ("1", "9**9**9**9", UNREAD), ("1", "(99999999)!", UNREAD), ("6", "3!", UNREAD),
    # Other golds: the spelling, then a second opinion.
    ("x^2+2x+1", "x^{2} + 2x + 1", RIGHT), ("x^2+2x+1", "(x+1)^2", RIGHT), ("x^2+2x+1", "x^2+2x+2", WRONG),
    (r"\frac{a}{b}", "a/b", RIGHT), (r"\frac{a}{b}", r"\dfrac{a}{b}", RIGHT), (r"\frac{a}{b}", r"\frac{b}{a}", WRONG),
    ("2xy", "2yx", RIGHT), ("2xy", "2xyz", WRONG), ("y=2x+1", "2x+1", RIGHT), ("y=2x+1", "y = 1+2x", RIGHT),
    ("y=2x+1", "x=2y+1", WRONG), ("y=2x+1", "x=2x+1", WRONG), ("x^2+y^2=25", "y^2+x^2=25", RIGHT),
    ("x^2+y^2=25", "x^2+y^2=5", WRONG), ("x^2+y^2=25", "25", WRONG),
    (r"(-\infty, 2)", r"\left(-\infty,2\right)", RIGHT),
    (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)", RIGHT), ("[1, 2)", "[1,2)", RIGHT),
    ("[1, 2)", "[1,2]", WRONG),
    ("[1, 2)", "(1,2)", WRONG), ("(1, 2)", "(2, 1)", WRONG), (r"\{1, 2\}", r"\{2, 1\}", RIGHT), ("x<3", "3>x", RIGHT),
    ("x<3", r"x\leq 3", WRONG), ("x<3", "x>3", WRONG), (r"x \le 3", "x ≤ 3", RIGHT),
    (r"\log_2 3", r"\log_{2}{3}", RIGHT),
    (r"\log_2 3", r"\frac{\ln 3}{\ln 2}", RIGHT), (r"\log_2 3", r"\log_3 2", WRONG), (r"\pm 3", r"\pm 3", RIGHT),
    (r"\pm 3", "3", WRONG), (r"\pm 3", "±3", RIGHT), (r"e^{2}", "e^2", RIGHT), (r"\sin\theta", r"\sin \theta", RIGHT),
    (r"\sin\theta", r"\cos\theta", WRONG), ("A", "a", UNREAD), ("2A", "2a", WRONG), ("AB", "BA", UNREAD),
    (r"\overline{AB}", r"\overline{AB}", RIGHT), (r"\overline{AB}", r"\overline{CD}", UNREAD), ("ab", "a b", UNREAD),
    ("5x", "5x or 6x", UNREAD), ("5x", "5x, 6x", WRONG), ("2x^3", "2x\nx^2", UNREAD), ("5x", "not 5x", UNREAD),
    ("5x", r"\text{about }5x", UNREAD),
    ("5x", "the answer is 5x", RIGHT), ("x+56", "x+5 6", UNREAD), ("1:2", "1:2", RIGHT), ("1:2", "2:1", UNREAD),
    ("listen", "silent", UNREAD), ("no", "on", UNREAD), ("China", "Chain", UNREAD), ("2x", "x^{9^{9^9}}", UNREAD),
    ("2x", "x^{99999}", UNREAD), ("2x", "2x!", UNREAD), ("2x", "(" * 9 + "2x" + ")" * 9, UNREAD),
]

LISTS = [
    ("[2014, 2016]", "[2014, 2016]", RIGHT), ("[2014, 2016]", "2014, 2016", RIGHT),
    ("[2014, 2016]", "2014 and 2016", RIGHT),
    ("[2014, 2016]", "(2014, 2016)", RIGHT), ("[2014, 2016]", r"\boxed{[2014, 2016]}", RIGHT),
    ("[2014, 2016]", "[2016, 2014]", WRONG), ("[2014, 2016]", "[2014, 2015]", WRONG), ("[2014, 2016]", "2014", WRONG),
    ("[2014, 2016]", "[2014, 2016, 2018]", WRONG), ("[2014, 2016]", "2014-2016", WRONG), ("[2014, 2016]", "", UNREAD),
    ("[2014, 2016]", "[2014, 2016] or [1, 2]", UNREAD), ("[2014, 2016]", "[2014,, 2016]", UNREAD),
    ("[2014, 2016]", "2014 or 2016", WRONG), ("2014, 2016", "[2014, 2016]", RIGHT), ("2011; 2012", "2011, 2012", RIGHT),
    ("[2011, 2012]", r"\{2011, 2012\}", RIGHT), ("{2011, 2012}", "[2012, 2011]", RIGHT), ("{1, 2}", "1 or 2", RIGHT),
    ("{1, 2}", "x = 2 or x = 1", RIGHT), ("{1, 2}", "{1, 1}", WRONG), ("{1, 1}", "{1, 2}", WRONG),
    ("{1, 2}", "{1, 2, 3}", WRONG),
    ("{1, 2}", "{1, 2} or {3, 4}", UNREAD), (r"\{1, 2\}", "2, 1", RIGHT), ("(3, -4)", "(3,-4)", RIGHT),
    ("(3, -4)", r"\left(3, -4\right)", RIGHT), ("(3, -4)", "(x, y) = (3, -4)", RIGHT),
    ("(3, -4)", "x = 3, y = -4", RIGHT),
    ("(3, -4)", "(-4, 3)", WRONG), ("(3, -4)", "P = (3, -4)", RIGHT), (r"(3, 5\sqrt{2})", "(3, 5√2)", RIGHT),
    (r"(0.5, 3)", r"(\frac{1}{2}, 3)", RIGHT), ("[0.5, 100]", "[0.501, 100]", RIGHT),
    ("[0.5, 100]", "[0.5, 101]", WRONG),
    ("[red, blue]", "red and Blue", RIGHT), ("[red, blue]", "['red', 'blue']", RIGHT),
    ("[red, blue]", "blue, red", WRONG),
    ("{red, blue}", "blue, red", RIGHT), ("[red, blue]", "red, blue, green", WRONG),
    ("[0, 2, 0, 2]", "0, 2, 0, 2", RIGHT),
    ("[5 cm, 6 cm]", "[5 m, 6 cm]", WRONG), ("[1, 3]", "[1, [3]]", UNREAD), ("[5]", "5", RIGHT),
]

CHARTS = [
    ("14", "14", RIGHT), ("14", "14.5", RIGHT), ("14", "14.7", RIGHT), ("14", "14.8", WRONG), ("14", "13.3", RIGHT),
    ("0.57", "0.58", RIGHT), ("0.57", "0.6", WRONG), ("57", "57%", RIGHT), ("0.57", "57%", RIGHT), ("57%", "57", RIGHT),
    ("57%", "0.57", RIGHT), ("57", "5.7%", WRONG), ("12", "12%", RIGHT), ("2017", "2017", RIGHT),
    ("2017", "2016", WRONG),
    ("2020", "1950", WRONG), ("2017", "2,017", RIGHT), ("2017.0", "2016", RIGHT), ("2500", "2450", RIGHT),
    ("3", "3", RIGHT), ("3", "3.1", RIGHT), ("3", "3.0", RIGHT), ("0", "0", RIGHT), ("0", "0.0", RIGHT),
    ("0", "0.01", WRONG),
    ("3.0", "3.1", RIGHT), ("-5", "-5", RIGHT), ("-5", "5", WRONG), ("1,234", "$1,234", RIGHT), ("5.5", "$5.5", RIGHT),
    ("1234567", "1.23e6", RIGHT), ("100", "100 or 200", UNREAD), ("100", "100 200", UNREAD), ("100", "a lot", UNREAD),
    ("Yes", " yes", RIGHT), ("Yes", "No", WRONG), ("Blue", "Blue.", RIGHT), ("Blue", "Black", WRONG),
    ("Blue", "7", WRONG),
    ("[2014, 2016]", "[2014, 2016]", RIGHT), ("[2014, 2016]", "2014, 2016", RIGHT),
    ("[2014, 2016]", "2014, 2017", WRONG), ("14 cm", "14 m", WRONG), ("1/2", "0.5", RIGHT), ("14\n15.5", "15.4", RIGHT),
]
# fmt: on

# kind, gold, response, options, (correct, parsed)
TABLE = [
    *[("integer", gold, response, None, verdict) for gold, response, verdict in INTEGERS],
    *[("number", gold, response, None, verdict) for gold, response, verdict in NUMBERS],
    *[("rounded", gold, response, None, verdict) for gold, response, verdict in ROUNDED],
    *[("choice", gold, response, options, verdict) for gold, response, options, verdict in CHOICES],
    *[("text", gold, response, None, verdict) for gold, response, verdict in TEXTS],
    *[("latex", gold, response, None, verdict) for gold, response, verdict in LATEX],
    *[("list", gold, response, None, verdict) for gold, response, verdict in LISTS],
    *[("chart_relaxed", gold, response, None, verdict) for gold, response, verdict in CHARTS],
]
