"""More verdicts, grouped by gold: the answers that are right, those that are wrong, those that are not read.

Every group holds its near misses.
"""

from __future__ import annotations

from typing import NamedTuple


class Group(NamedTuple):
    """Answers to one gold."""

    kind: str
    gold: str
    options: tuple[str, ...] | None
    right: tuple[str, ...]
    wrong: tuple[str, ...] = ()  # read, and another answer than the gold
    unread: tuple[str, ...] = ()  # no answer of the kind, or more than one


DEGREES = ("35°", "40°", "45°", "50°")
LATEX_OPTIONS = (r"$\frac{1}{12}S$", r"$2-\sqrt2$", "$4:1$", r"$3\sqrt{3}$", r"$70^{\circ}$")
YES_NO = ("Yes", "No")
LOWER_YES_NO = ("yes", "no")
MONEY = ("$720", "$660.50", "$9.00", "$12,000")
PLANTS = ("Asteraceae", "Rosaceae", "Fabacea", "Poaceae")
PAIRS = ("Q,Q", "Q,P", "P,Q", "P,P")
FUNCTIONS = ("a polynomial", "a trigonometric function", "an exponential function", "a logarithmic function")
CHAIN = ("sun", "grasshoppers", "grass", "mice")
CULTURE = (
    "A group of people living in the same place",
    "Refers to people who interact in a deLned territory and share a culture",
    "The scientific study of the human mind or its functions",
)
LETTERED = ("A. 12 cm", "B. 15 cm", "C. 18 cm", "D. 20 cm")
BARE_LETTERED = ("A)", "B)", "C)", "D)")
RATIOS = ("$2:3$", "3: 2", r"$6:\pi$", "5:3")
POWERS = ("$2002^2$", "$2003^2$", r"$3 \cdot 2^5$", r"$6^3$")
LENGTHS = ("2mm", "3mm", "4mm", "12cm")
AREAS = (r"$18 \mathrm{~cm}^{2}$", r"$20 \mathrm{~cm}^{2}$", r"$22 \mathrm{~cm}^{2}$", "2.14 m$^2$")
FRACTIONS = (r"$\frac{4}{5}$", r"$\frac{3}{4}$", r"$\frac{2}{3}$", r"$\frac{1}{2}$")
SAME = ("9", "12", "18", "18")
SOLUTIONS = ("neither", "Solution A", "Solution B")
ANGLES = ("71°27'48.68\"", "71°26'48.68\"", "71°21'48.68\"")
TRUTH = ("True", "False")
PUZZLE = ("1 & 2", "1 & 3", "2 & 3")
POINTS = ("(0, 0)", "(-1, 0)", "(2, 0)")
VARIABLES = ("R", "r", "2R", "2r")
EFFECTS = ("decrease", "increase", "stay the same")

# fmt: off
GROUPS = [
    # A marked letter with text decides; another option beside it makes two answers.
    Group("choice", "(A)", LATEX_OPTIONS, (
        r"\textbf{(A) }\frac{1}{12}S", r"\boxed{\textbf{(A) }\frac{1}{12}S}", r"\textbf{(A)} $\frac1{12}S$",
        r"(A) S/12",
        r"\text{(A)}", r"\mathbf{(A)}", r"\mathrm{A}", "A) one twelfth of S", r"**A** $\frac{1}{12}S$",
        r"A. $S \cdot 1/12$",
    ), (
        r"\textbf{(C) }4:1", r"\text{(E) }70^\circ", r"\mathrm{(B)}\ 2-\sqrt2",
    ), (
        r"\textbf{(A) }4:1", r"\textbf{(A) }\textbf{(B) }", r"(A) 70°", r"\text{(A) }3\sqrt3", r"(A) or (B)",
        r"(A), (C)",
        r"\textbf{(F) }\frac{1}{12}S", r"\textbf{(A)}\textbf{(A) }4:1",
    )),
    Group("choice", "(C)", LATEX_OPTIONS, (
        r"\text{(C) }4:1", "(C) 4:1", "(C) 4/1", r"\boxed{4:1}", "4", "4: 1", r"C. $4 : 1$", r"\( \text{C} \) 4:1",
        r"\( \text{(C)}\, 4:1 \)",
    ), (r"\text{(D) }3\sqrt{3}", r"3\sqrt3", "70"), ("1:4", "(C) 70", r"\text{(C)} 3\sqrt{3}")),
    Group("choice", "(E)", LATEX_OPTIONS, (
        r"\text{(E) }70^\circ", r"70^\circ", "70°", "70", "70 degrees", r"70^{\circ}", "E. 70", "(E) 70 degrees",
        "$E$", "E)",
        r"\boxed{70^\circ}", r"$70$ degrees", "The measure of the angle is 70 degrees.",
    ), ("4", r"(D) 3\sqrt{3}"), ("71", "70 or 71", "The measure is not 70 degrees.", "(E) 4:1", "70 cm")),
    Group("choice", "B", DEGREES, (
        "B. 40", "B. 40 degrees", "B (40°)", "B) 40", "(B) 40°", "B: 40", "(B): 40 degrees", "40", "40°", r"40^\circ",
        r"$40^{\circ}$", "40 degrees", "40.0", "B. 41", "The angle measures 40 degrees.", "Therefore, angle B is 40°.",
        "So the answer is (B) 40°", "option (B)", "**B**", "**B.** 40", "(B).",
    ), ("45", "A. 35", "A. 36", "(C)", "C (45°)"), (
        "A. 40", "B. 45", "B. 40 or C. 45", "40 or 45", "B: 41", "b. 41", "B 41", "41", "B, C", "B. 35 degrees",
        "B. 40, not 45", "B. not 40", "40 45", "B/C", "40 = 45", "The angle is 40° or 45°.", "B. Or maybe C", "(B) (C)",
    )),
    Group("choice", "(B)", YES_NO, (
        "B", "No", "no.", "B (No)", "(B) No", "B. No", "B: No", "(B), no", "No, it is not.", "No, the bus is not red.",
        "**No**, because the car is small", "(B) No, because it is less than or equal to 5", "B (no)",
        "The answer is (B) No.",
        "The answer is no", "No because there are four",
    ), ("A", "Yes", "Yes, it is.", "A (Yes)", "A. Yes", "yes, the bus is small"), (
        "A: No", "A. No", "A (No)", "(A) No", "Yes or no", "Yes/No", "Not sure", "No, or maybe yes",
        "There is no way to tell",
        "I do not know", "No. Yes.", "neither yes nor no", "B. Yes", "no and yes", "No? Yes", "It cannot be determined",
    )),
    Group("choice", "(A)", LOWER_YES_NO, (
        "A) yes", "yes", "Yes, Crimson is the lowest.", "A (yes)", "(A) Yes", "YES", "A. Yes", r"\boxed{\text{yes}}",
    ), ("B) no", "no, it is not"), ("yes no", "A. no", "yes, but also no", "A) no", "not yes")),
    Group("choice", "(C)", MONEY, (
        "C ($9.00)", "(C) $9", "$9.00", "9", r"\$9", "C. $9.00", r"\( \text{C} \) \$9.00", "9 dollars", "C", "$9",
    ), ("D ($12,000)", "$12,000", "12000", "$720"), ("C ($720)", "C. $720", "$9 or $720", "$90", "9 euros",
        "B ($9.00)")),
    Group("choice", "(D)", MONEY, (
        r"\(\text{\textbf{D}} \$12,000\)", "$12000", "12,000", "D. $12,000", "D (12,000)", r"\text{D}",
    ), ("$720", "B. $660.50"), ("D. $720", "$12", "$12,000 and $720", "D. $720 or so")),
    Group("choice", "C", PLANTS, (
        "C. Fabaceae", "C. Fabacea", "Fabacea", "(C) Fabaceae", "C (Fabaceae)", "**C. Fabaceae**", "c. Fabacea",
        "The plant is a member of Fabacea.",
    ), ("A. Asteraceae", "Rosaceae"), (
        "Fabaceae", "C. Rosaceae", "C. Fabaceae or Rosaceae", "C Fabaceae", "c. Fabaceae", "C. Fabaceae (D)",
        "C. Not Fabaceae",
        "It is Fabacea or Poaceae", "C. Fabaceae, maybe",
    )),
    Group("choice", "(B)", PAIRS, (
        "B. Q, P", "Q, P", "Q,P", "B. Q,P", "(B) Q and then P", "B", "q, p",
    ), ("P, Q", "C. P,Q", "Q,Q"), ("B. P, Q", "B. Q, Q", "A. Q, P", "Q P", "QP", "Q, P or P, Q")),
    Group("choice", "B", CULTURE, (
        "B. Refers to people who interact in a defined territory and share a culture", "B",
        "(B) Refers to people who share a culture",
        "Refers to people who interact in a deLned territory and share a culture",
    ), ("A. A group of people living in the same place", "C"), (
        "B. A group of people living in the same place", "B. Refers to people, or C", "B. The answer is A",
        "B. Refers to people who interact (C)", "Refers to people",
    )),
    Group("choice", "(C)", CULTURE, (
        "C. The scientific study of the human mind or its functions",
        "C. A scientific study of the mind or its functions",
        "(C) The study of a mind",
    ), ("B", "(A) A group of people"), ("C. A or B", "C. not the study of the mind", "C. Refers to A", "A. B. C.")),
    Group("choice", "(B)", LETTERED, (
        "B", "15 cm", "15", "B. 15 cm", "15cm", r"$15$ cm", r"15\,\mathrm{cm}", "(B) 15", "15 centimeters", "B. 16",
        "The length of the side is 15 cm.",
    ), ("A. 12 cm", "12", "20 cm", "(D) 20"), ("15 m", "A. 15 cm", "B. 12", "15 or 18", "150 mm", "B. 15 or 18 cm")),
    Group("choice", "(D)", BARE_LETTERED, ("D", "(D)", "D)", "option D", r"\text{(D)}"), ("C", "B)"), ("C or D", "E",
        ")", "C, D")),
    Group("choice", "B", RATIOS, ("3:2", "3: 2", "3 : 2", "3/2", r"\frac{3}{2}", "1.5", r"$3:2$", "B. 3/2", "(B) 1.5"),
          ("2:3", "2/3", "5/3", "5: 3", "5:3"), ("32", "B. 2:3", "3:2 or 2:3", "3,2", "3:2:1", "6:4 or 5:3")),
    Group("choice", "C", RATIOS, (r"6:\pi", r"6: \pi", r"\frac{6}{\pi}", r"6/\pi", r"C. $6:\pi$"), ("5/3", "2:3"),
        (r"\pi:6", "6")),
    Group("choice", "(A)", POWERS, ("2002^2", "2002^{2}", "$2002^2$", "4008004", "A. 2002^2", "(A) 2002²"),
          ("2003^2", "216", "B"), ("2002", "A. 2003^2", "20022", "2002^2 or 2003^2")),
    Group("choice", "(C)", POWERS, ("96", r"3 \cdot 2^5", r"3 \cdot 2^{5}", r"C. 96", r"\boxed{96}", "C"),
          ("6^3", "216"), ("97", "96 or 216", "C. 6^3")),
    Group("choice", "B", LENGTHS, ("3.0", "3 mm", "3", "3mm", "B. 3", "3 millimeters",
        "The distance to the chord is 3mm."),
          ("2", "4.0", "12 cm", "12"), ("3 cm", "3 m", "30", "2 or 3", "B. 2mm", "2mm 3mm",
          "The distance is 3mm or 4mm.")),
    Group("choice", "D", LENGTHS, ("12cm", "$12$ cm", "12 cm", r"12\text{ cm}", "12.0cm", "12"), ("3",), ("12 mm",
        "120 mm", "D. 3mm")),
    Group("choice", "(D)", AREAS, (
        "D. 2.14 m²", "D. 2.14 m^2", "2.14 m²", "2.14", r"2.14\ \mathrm{m}^2", "2.14 square meters", "D. 2.14 m",
    ), ("20", "18 cm^2", r"20 \ \mathrm{cm}^2"), ("2.14 cm^2", "2.14 m", "D. 20", "D. 2.14 or 18")),
    Group("choice", "(B)", AREAS, (
        "20", "20 cm^2", r"20 \ \mathrm{cm}^2", r"$20 \mathrm{~cm}^2$", "20 square centimeters", "20 cm²", "B",
    ), ("18", "22 cm^2"), ("20 cm", "20 m^2", "200", "20 or 22", "20 cm^2, 22 cm^2")),
    Group("choice", "(A)", FRACTIONS, (
        "4/5", r"\frac{4}{5}", r"\dfrac{4}{5}", r"\tfrac45", r"\cfrac{4}{5}", "0.8", "8/10", "A. 4/5", r"\frac45",
        "80%", "⅘",
    ), ("3/4", "0.75", "50%", r"\dfrac12"), ("5/4", "45", "4/5 or 3/4", "A. 0.75", "4,5", "3/4 = 4/5")),
    Group("choice", "(B)", (r"$\pi \mathrm{cm}^2$", r"$2\pi \mathrm{cm}^2$", r"$3\pi \mathrm{cm}^2$"),
        (r"(B)~10 \pi \mathrm{cm}^2", r"2\pi", "B. 2π cm²"), (r"3\pi", r"\pi", "π cm^2"),
        (r"(B) \pi \mathrm{cm}^2", r"(B) 3\pi", r"2\pi or 3\pi", r"(B) is \pi \mathrm{cm}^2")),
    # Options of one text.
    Group("choice", "(C)\n(D)", SAME, ("18", "C", "D", "(D) 18", "C. 18", "18.0", "(C) 18", "The segment is 18."),
          ("9", "12", "A", "(B) 12"), ("18 or 12", "C or D", "C, D", "19", "A. 18", "(C) (D)", "C. 12")),
    Group("choice", "(C)", SAME, ("C", "(C) 18"), ("D", "(D) 18", "9"), ("18", "C or D", "A. 18")),
    # In a sentence.
    Group("choice", "(A)", FUNCTIONS, (
        "a polynomial", "This function is most likely a polynomial function.", "A polynomial", "(A) polynomial",
        "A. polynomial",
        "The function in the image is a polynomial, as it is a smooth curve.", "The graph shows a polynomial.",
    ), ("The graph shows a logarithmic function.",), (
        "It is a polynomial or an exponential function.", "The function is not a polynomial.", "polynomial",
        "Neither is it a polynomial.", "It is a polynomial rather than a logarithmic function.",
        "This could be a polynomial.",
        "a polynomial, maybe a logarithmic function", "I would need more to say if it is a polynomial.",
    )),
    Group("choice", "D", CHAIN, (
        "D (mice)", "mice", "The owls eat mice.", "(D) mice", "Owls eat the mice, because they are predators.",
        "**mice**",
        "Most of the owls hunt mice.", "D. mice", "So the answer is D (mice).",
    ), ("grass", "A (sun)", "They live on grass."), (
        "mice and grass", "Owls eat mice, and mice eat grass.", "grasshoppers or mice", "The owls do not eat mice.",
        "D (grass)",
        "mic", "Not mice", "Either mice or grass.", "D. grass", "D (mice) or B", "mouse",
    )),
    Group("choice", "(C)", SOLUTIONS, (
        "(C) Solution B", "Solution B", "C", "C. Solution B", "solution b", "C. Solution B has more particles", "(C)",
    ), ("Solution A", "A", "B. Solution A"), ("(C) Solution A", "B. Solution B", "Solution A or Solution B",
        "Solution")),
    Group("choice", "(A)", ANGLES, ("71°27'48.68\"", "A. 71°27'48.68\"", "A", "(A) 71°27'48.68\""), ("71°26'48.68\"",
        "C"),
          ("A. 71°26'48.68\"", "71°27'48.68\" or 71°21'48.68\"", "71°27'")),
    Group("choice", "(B)", TRUTH, ("False", "B", "false", "(B) False", "False, because it rises", "B: False"),
        ("True", "A", "True, it is"),
          ("A: False", "A. False", "True or false", "not true", "False. True.")),
    Group("choice", "(B)", PUZZLE, ("1 & 3", "B", "(B) 1 & 3", "B. 1 & 3",
          "The pieces that form a square are 1 & 3."), ("1 & 2", "C"), ("B. 2 & 3", "1 & 2 & 3", "1 & 3 or 2 & 3",
          "13")),
    Group("choice", "(A)", POINTS, ("(0, 0)", "(0,0)", "A", "The center of symmetry of the graph is (0, 0).",
        "A. (0,0)"),
          ("(2,0)", "(-1, 0)"), ("(0, 1)", "(0,0) or (2,0)", "A. (2, 0)", "0, 0 and 2, 0", "00")),
    Group("choice", "(B)", VARIABLES, ("r", "B", "B. r", r"\text{r}"), ("R", "2r", "2R"), ("r or R", "B. R", "rR",
        "3r")),
    Group("choice", "(A)", EFFECTS, (
        "decrease", "The population will decrease.", "A. It will decrease", "(A)",
        "If the grass dies, the deer will decrease.",
    ), ("increase", "The number of deer will increase."), (
        "It may increase or decrease", "The population will not decrease.", "decrease, then increase", "A. increase",
        "It would neither increase nor decrease", "in decrease of increase", "crease",
    )),
    Group("choice", "D", None, (
        "D", r"\textbf{(D) }\frac{1}{12}S", r"\text{(D)} 4:1", r"\mathrm{(D)}\ 2-\sqrt2", "D. 40 degrees", "D (No)",
        "D ($9.00)",
        r"\( \text{D} \) 24.3 kN", "**D**", "**D.** red", "Option D: red", "D) red", "(D).", "The correct option is D.",
        "D. Refers to people who share a culture", "D. 9673J",
    ), ("C", "(E) 4", r"\text{(A)}"), (
        "D. 40, C. 45", "D or E", "D, E", "(D) (E)", r"\text{(D)} \text{(E)}", "D E", "D. A is wrong", "D. not this",
        "DE", "M",
        "D. 40 or 45", "40", "D 40", "neither D", "D/E", "D & A", "D.C.", "either D or another one",
    )),
    # Numbers.
    Group("latex", r"\frac{1}{3}", None, (
        r"\left(\frac13\right)", r"(\frac13)", r"\cfrac{1}{3}", r"\cfrac13", "1/3", r"\left( 1/3 \right)",
        "0.3333333333333333",
        r"$\left(\frac{1}{3}\right)$", r"\frac{1}{3} \approx 0.333", "1/3 ≈ 0.33", r"\frac{2}{6} = \frac{1}{3}", "1:3",
        r"x = \frac{1}{3}", r"P(A) = \frac13", "p=1/3", "(1/3)", r"\dfrac{1}{3}",
    ), ("0.3333", "0.33", "3", r"\left(\frac{3}{1}\right)", "0.3333333333333343", "3:1", "(3)", "33%"), (
        "1/3 = 0.33", "1/3 ≈ 0.34", "1/3 or 2/3", r"\frac13\frac13", "0.33 ≈ 0.3", "1/3 ≈ 1", "(1)(3)", "((1/3)",
    )),
    Group("latex", r"5\sqrt{3}", None, (
        r"5\sqrt3 \approx 8.66", r"5\sqrt{3} ≈ 8.660", r"\left(5\sqrt{3}\right)", r"(5\sqrt3)",
        r"x = 5\sqrt{3} \approx 8.66",
        r"\sqrt{75} = 5\sqrt{3}", r"5$\sqrt{3}$", r"5 * 3^{1/2}", r"75^{1/2}", r"BC=5\sqrt3", r"|AB| = 5\sqrt3",
        r"d = 5√3",
        r"5\sqrt{3}\text{米}", r"5\sqrt{3} 厘米",
    ), ("8.660254", r"5\sqrt2", r"|AB| = 5\sqrt2", r"75^{1/3}", "8.66 cm"), (
        r"5\sqrt3 \approx 8.7 \approx 9", r"5\sqrt3 \approx 8.76", r"5\sqrt3 = 8.66", r"5\sqrt3 \approx 9",
        r"5\sqrt3 or 9",
        r"|AB| + 1 = 5\sqrt3", r"5\sqrt{3}x", r"5$\sqrt{3}$ or $2$",
    )),
    Group("latex", "576", None, (
        "24*24 = 576", r"24 \times 24 = 576", r"24\cdot24=576", "576.", "(576)", "576。", "（576）",  # noqa: RUF001
        "(576 cm)", "n = 576",
        r"N = 24 \cdot 24 = 576", "600 - 24 = 576", "1152/2 = 576", "576", "f(2)=576", "f(x) = 576",
        r"S_{\triangle ABC}=576", r"S_{ABC} = 576", r"m \widehat{AB} = 576", r"\widehat{AB}=576", r"m\angle A = 576",
        r"\angle ABC = 576", "AB=576", "|AB|=576", r"\overline{AB} = 576",
    ), ("577", "|AB|=575", "f(x)=57", r"S_{\triangle ABC}=57.6", "-576", "567"), (
        "24*24 = 577", "24*24", "576 = 577", "2x = 576", "x^2 = 576", "576, 577", "24*24 = 576 = 577", "576 or 577",
        "24 = 576", "25*24 = 576", "f(x) = 576 or 2", "not = 576", "x+y = 576", "24*24 = 24*24", "(576", "576)",
    )),
    Group("latex", "10000", None, (
        r"10\,000", "10 000", "10,000", "10000", r"10{,}000", "1e4", "10^4", "10^{4}", "10^(4)",
        r"1 \times 10^4", "1.0 × 10^(4)",  # noqa: RUF001
        r"1\cdot10^{4}", "10000.0", r"10\ 000", "10⁴", r"$10\,000$ cm",
    ), ("1000", "10,001", "100000", "10^5", r"1 \times 10^3", r"10\,001", "10"), (
        "10 00", "100 00", "10 0000", "10,00", "10.000.0", "10 001", "10 000 10 000", "10000 or 1", "10^4^1", "1 0000",
    )),
    Group("latex", "1234567", None, ("1 234 567", r"1\,234\,567", "1,234,567"), ("1 234 568", "1234"), ("1 234",
        "12 34 567", "1 2345 67")),
    Group("latex", "10", None, (
        "10米", "10 米", "10厘米", "10 厘米", "10海里", "10度", "10 degrees Celsius", "10°C", "10 ℃", "10 degrees",
        r"10^\circ", "10 kN",
        "10千米", "10公里", "10 nautical miles", "10Ω", r"10\%", "10%",
        "10°", "10。", "10.0", "(10)", "$10$ 米", "10克",
        "10秒", "10 kPa",
    ), ("11米", "100厘米", "1 degrees Celsius", "0.1", "11%"), (
        "10厘米米", "10 apples and pears", "10 or 11", "10米 11米", "10 M", "10 K", "10 million", "十", "10 half",
        "10 squared", "10!",
    )),
    Group("latex", r"10 \text{ cm}", None, ("10厘米", "10 cm", "10", "10 centimetres"), ("10米", "10 m", "10 mm",
        "10 cm^2", "11 cm"), ("10 cm or m",)),
    Group("latex", r"\frac{4}{3}", None, ("1.3333333333333333", "4/3", "1.33333333333333", "1 1/3", "8/6", "4:3"),
          ("1.3333", "1.33333333", "1.3333333333333433", "3:4", "1.4"), ("4/3/1", "4 3", "1.33 or 4/3")),
    Group("latex", r"(5/12)^{1/3}", None, (
        r"\sqrt[3]{5/12}", r"\sqrt[3]{\frac{5}{12}}", r"(\frac{5}{12})^{1/3}", r"\left(\frac{5}{12}\right)^{1/3}",
        "(5/12)^(1/3)",
    ), ("5/36", r"\sqrt{5/12}", "(5/12)^{1/2}", r"\sqrt[3]{12/5}"), ("(5/12)^3", "(5/12)^(1/3) or 1")),
    Group("latex", r"{8}{5} \pi", None, (r"\frac{8}{5}\pi", r"\frac{8\pi}{5}", r"8\pi/5", r"1.6\pi", r"\frac85 \pi"),
        (r"\frac58\pi", r"85\pi", "8/5"), (r"8 5 \pi",)),
    Group("latex", r"315^\circT", None, ("315", "315°", r"315^\circ", r"315^{\circ}", "315 degrees", r"315^\circT",
        "315°T"), ("135", "315 cm"), ("315 T", "315 or 135")),
    Group("number", "50", None, ("50 %", r"50\%", "50 percent", "50", "50.0%"), ("5%", "0.5", "55%"), ("50% or 60%",)),
    Group("integer", "50", None, ("50 %", r"50\%", "50 percent", "5000%"), ("5%", "51%", "0.5%"), ("50% 60%",)),
    Group("rounded", "50", None, ("50%", "50 %", r"50\%"), ("5%", "50.4", "50.4%"), ("50% to 60%",)),
    Group("latex", "0.5", None, ("50%", "1/2", "1:2", "50 percent"), ("5%", "50", "2:1", "500%"), ("50%%",)),
    Group("chart_relaxed", "50", None, ("50%", "51%", "50 percent"), ("0.5", "60%"), ("50% or 60%",)),
    Group("list", "[50, 60]", None, ("50%, 60%", "[50, 60]", "50 and 60"), ("5%, 6%", "60%, 50%"), ()),
    Group("number", "3.5", None, ("7:2", "3.5:1", "3 1/2", "7/2 = 3.5", "(3.5)", r"\left(3.5\right)", "3.5 cm"),
        ("2:7", "-3.5"), ("7:2:1", "7: 2 or 3", ":3.5", "7/2 = 3")),
    Group("rounded", "8.66", None, (r"5\sqrt{3} \approx 8.66", r"5\sqrt3", "8.66", "8.660254037844387", "8.66 cm",
        "y ≈ 8.66", "(8.66)"),
          ("8.7", "8.67", r"5\sqrt{2}"), (r"5\sqrt3 \approx 8.6", "8.66 or 8.67", "8.66 ≈ 8.7", r"5\sqrt3 \approx 9")),
    # Expressions, lists, intervals, words under latex.
    Group("latex", r"[-2,7]", None, (r"-2\le x\le 7", r"-2 \leq x \leq 7", "-2<=x<=7", "[-2, 7]", r"-2≤x≤7",
        r"\left[-2,7\right]", r"x\in[-2,7]"),
          (r"-2<x<7", r"-2\le x<7", "[-2,7)", "(-2,7)", "[2,7]", r"-2\le x\le 8", "[7,-2]"), ("-2 to 7",
          "between -2 and seven")),
    Group("latex", r"-2\le x\le 7", None, ("[-2,7]", "-2<=x<=7", r"-2 \leqslant x \leqslant 7"), ("(-2,7)", "[-2,7)",
        "[-2,8]", "-2<x<7"), ("-2..7",)),
    Group("latex", r"[3,\infty)", None, (r"x\ge 3", "x>=3", r"x \geq 3", r"[3, \infty)", "x≥3"), ("x>3",
        r"(3,\infty)", r"x\le 3", r"[4,\infty)", "x 3"), ("x and 3 3",)),
    Group("latex", r"x\neq 2", None, ("x!=2", r"x \ne 2", "x≠2", r"x\neq{2}"), ("x=2", "x!=3", "x>2"), ("not 2",)),
    Group("latex", "x<3", None, (r"x\lt 3", "x<3", r"x \lt 3", r"3 \gt x"), (r"x\gt 3", "x<=3", r"x\lt 4", "x 3"),
        ("x is less than 3",)),
    Group("latex", r"x\geq 5", None, ("x>=5", r"x\ge5", r"x \geqslant 5", "x≥5"), ("x>5", "x<=5", "x>=6"),
        ("5 or more",)),
    Group("latex", "19, 46, 82", None, ("19, 46, and 82", "19,46,82", "19, 46 and 82", "$19, 46, 82$"), ("19, 46",
        "19, 46, 83", "19, 82, 46"), ("19 46 82", "19, 46, or 82", "19; 46; 82")),
    Group("latex", "19, 46, and 82", None, ("19, 46, 82", "19, 46 and 82"), ("19, 46, 28",), ("19, 46, then 82",)),
    Group("latex", "1,2", None, ("1 and 2", "1, 2", "1,2", "1, and 2"), ("2 and 1", "1 and 3", "12", "1,2,3"),
        ("1 or 2", "1 2")),
    Group("latex", "(3,2)", None, ("(p,q)=(3,2)", "(3, 2)", "(x, y) = (3, 2)", r"\left(3,2\right)",
        r"(\frac{6}{2},2)"), ("(2,3)", "(p,q)=(2,3)", "(3,2,1)", "(3,-2)", "[3,2]", "(3,2) or (2,3)"), ("3 2",
        "(3;2)")),
    Group("latex", r"x^2+2x+1", None, ("f(x)=x^2+2x+1", "y = x^2+2x+1", "x^{2}+2x+1", "1+2x+x^2", "x(x+2)+1",
        r"\left(x+1\right)^2"),
          ("x^2+2x-1", "(x-1)^2", "f(x)=x^2+2x", "x^2+2", "(x+1)^3", "x^2-2x+1", "x^2 + 2 x + one"), ("x^2+2x+1 or x",
          "about x^2+2x+1")),
    Group("latex", r"\frac{x+1}{2}", None, ("(x+1)/2", r"\frac{1}{2}(x+1)", "0.5(x+1)", r"\frac{x}{2}+\frac12",
        r"\dfrac{x+1}{2}"), ("x+1/2", r"\frac{x}{2}+1", r"\frac{2}{x+1}", r"\frac{y+1}{2}"), ("x+1 over 2",)),
    Group("latex", r"\{1,x\}", None, (r"\{x,1\}", r"\{1, x\}", r"\left\{1,x\right\}", r"\{x, \frac{2}{2}\}"),
        (r"\{1,2x\}", r"\{1\}", r"\{1,x,2\}", "[1,x]"), ("1 or x",)),
    Group("latex", r"(2x, \sqrt{y})", None, (r"(2x,\sqrt y)", r"(x+x, \sqrt{y})", r"(2x, y^{1/2})"),
        (r"(\sqrt{y},2x)", r"(2x,y)", r"(x,\sqrt{y})"), (r"2x or \sqrt{y}",)),
    Group("latex", "y=2x+1", None, ("y-1=2x", "2x-y+1=0", "y=1+2x"), ("f(x)=2x+1", "x+y=y+x", "y-y=x-x", "y=2x-1",
        "y=3x+1", "y=2x",
        "2x-y-1=0"), ("y is 2x+1",)),
    Group("latex", "2x+y", None, ("y+2x", "x+x+y", "2(x+y)-y"), (
        r"2x+y+\frac{x}{10^{12}}", r"2x+y+\frac{x}{999999999999}", "2x+1.00000001y", "2x-y", "2xy",
    ), ("2x+y or 2x", "2x plus y")),
    Group("latex", r"\sin 2x", None, (r"\sin(2x)", r"2\sin x\cos x", r"2 \cos x \sin x"), (r"2\sin x", r"\sin x",
        r"\cos 2x", r"\sin^2 x"), ("sine of 2x",)),
    Group("latex", r"e^{2x}", None, (r"(e^x)^2", r"e^{x+x}", r"e^{2 x}", r"e^x \cdot e^x"), (r"e^{x}", r"2e^x",
        r"e^{-2x}"), ("exp of 2x", r"e^{x^2}")),
    Group("latex", r"\begin{pmatrix}1 & 2\\ 3 & 4\end{pmatrix}", None, (
        r"\begin{pmatrix}1 & 2\\ 3 & 4\end{pmatrix}", r"\begin{pmatrix} 1&2\\3&4 \end{pmatrix}",
        r"$\begin{pmatrix}1 & 2 \\ 3 & 4\end{pmatrix}$",
    ), (), (r"\begin{pmatrix}1 & 2\\ 3 & 5\end{pmatrix}", r"\begin{pmatrix}1 & 2 & 3 & 4\end{pmatrix}",
        r"\begin{pmatrix}1 & 3\\ 2 & 4\end{pmatrix}")),
    Group("latex", "Yes", None, ("yes", "YES", "Yes.", r"\text{yes}", r"\boxed{Yes}"), (), ("No", "yes or no", "Yess",
        "not yes")),
    Group("latex", "B", None, ("(B)", "B", r"\text{B}", r"\text{(B)}"), (), ("b", "A", "(A)", "B or C", "(b)", "AB")),
    Group("latex", "(B)", None, ("B", "(B)", r"\mathrm{B}"), (), ("A", "b", "BB")),
    Group("latex", "red", None, ("Red", "RED", r"\text{red}", "**red**"), (), ("der", "blue", "red or blue", "dred",
        "the red")),
    Group("latex", "isosceles triangle", None, ("Isosceles triangle", "isosceles  triangle",
        r"\text{isosceles triangle}"), (), ("triangle", "isosceles", "triangle isosceles")),
    Group("latex", "3:4", None, ("3:4", "3/4", "0.75", r"\frac{3}{4}", "A:B=3:4", "3 : 4", "6/8"), ("4/3", "0.7",
        "34"), ("4:3", "3:4 or 4:3", "3:4:5")),
    # Charts and sentences of one number.
    Group("chart_relaxed", "1125", None, ("1125", "1125.0", "1135.8", "1,125", "1100.5", "$1,130", "1130 cm",
        "The value is 1125.", "1.1 thousand"), ("1126", "1135", "1100", "2000.5"), ("1125 or 1130",)),
    Group("chart_relaxed", "5", None, ("5", "5.0", "5.04", "4.96", "5%", "5.2%", "5 million"), ("6", "4", "5.4",
        "4.7"), ("5 or 6", "five")),
    Group("chart_relaxed", "2012", None, ("2012", "2,012", "2012.0", "The sales peaked in the year 2012."), ("2013",
        "2011", "2"), ("2012 or 2013", "2012 and 2014")),
    Group("chart_relaxed", "187", None, (
        "187", "187 million", "187 million dollars",
        "The brand value of the team in 2012 was 187 million U.S. dollars.",
        "The sales were 187 thousand in 2019.", "It grossed 187 million U.S. dollars in January 2018.",
        "There are 187 channels.",
        "The total is about 187.", "The number of cars is 187 in total.", "190", "The value (2012) is 187%.",
        "187 channels",
        "In 2012 the value was 187.", "the sum of both bars is 187 percent",
    ), ("201", "The value in 2012 was 2012.", "0.187 million", "There are 18 channels.", "18.7 million"), (
        "187 or 188", "The value is not 187.", "The values are 187 and 53.", "Either 187 or 53.",
        "187 million or 188 million",
        "The left bar is 187 and the right one is 53.", "The value is 187, or maybe 55.", "It was 53. It was 187.",
        "The first is 53 and the second is 187.", "The value is unclear, 187 perhaps.", "187 53",
    )),
    Group("chart_relaxed", "0.7", None, ("0.7 percent", "The growth of Procter & Gamble in 2012 was 0.7 percent.",
        "0.7%", "0.72", ".7"), ("0.8", "7%"), ("0.7 to 0.8", "The growth was 0.7 or 0.8 percent.")),
    Group("chart_relaxed", "14933", None, ("The average R&D expenditure between 2003 and 2017 was 14,933.", "14,933",
        "15 thousand", "$14.9 thousand"), ("20 thousand", "The average between 2003 and 2017 was 2003.5."),
        ("between 14,933 and 15,000",)),
    Group("chart_relaxed", "6.6", None, ("The difference between the two values over the years is 6.6.", "6.6",
        "6.7"), ("The difference is 7.6.", "-6.6"), ("The difference is 6.6 or 7.6.", "6.6, 7.6")),
    Group("chart_relaxed", "21", None,
        ("The difference between the highest (53%) and the lowest (32%) is 21 percentage points.", "21%", "20.5"),
        ("53%", "The highest (21%) minus the lowest (3%) is 18."), ("53% - 32% is 21, or 22", "21 and 53")),
    Group("integer", "12", None, (
        "There are 12 apples left.", "The total would be 12 apples.", "There are a total of 12 dots.",
        "The number of people is 12.",
        "The highest number shown is 12.",
        "There are twelve apples left.", "12 apples", "12 apples left", "12 dots in each group",
        "So the total is 12 apples.",
        "Natalie needs 12 dollars.", "The model has 12 dots.", "The perimeter of the rectangle is 12 cm.",
        "12 entries per year",
        "The lowest value in 2014 is 12.", "The answer is 12.",
        "The bars add up to 12 in 2012.", "The ages of both people add up to 12 years.",
    ), ("There are 13 apples left.", "The number of people is 11.", "There are eleven apples.", "13 apples",
        "7 dots"), (
        "There are 12 or 13 apples.", "There are not 12 apples.", "There might be 12 apples.", "12 or so",
        "12 apples or pears",
        "The number is 12 or eleven.", "12 thousand", "12 times six", "The left has 12 and the right has 5.",
        "12 apples and 5 pears",
        "The dots are divided into 12 equal groups.", "at least 12 people came", "one in 12 people", "12 minus six",
        "The number of people is 12 and the number of cars is 5.", "It is 5. It is 12.",
        "The image does not show 12 cars.",
        "Without the picture it is 12.", "12 dozens", "12 halves",
        "figure 12 shows it",
    )),
    Group("number", "0.8", None, ("The value of the sine is 0.8.", "0.8", "The probability is 80%.",
        "The slope of the line is 0.8."),
          ("The value of the sine is 0.6.",), ("The value is 0.8 or 0.6.", "The value is not 0.8.",
          "The sine is 0.8 and the cosine is 0.6.")),
    Group("rounded", "13.8", None, ("Natalie needs $13.8.", "The cost of the spice is $13.8.",
        "Colton will spend $13.80."), ("Natalie needs $14.8.",), ("Natalie needs $13.8 or $14.",
        "Natalie needs at most $13.8.")),
    # Texts echoed exactly, marks and all.
    Group("text", "LAAP*", None, ("LAAP*", "laap*", "LAAP*."), ("LAAP", "LAP*"), ("",)),
    Group("text", "Rabbit**", None, ("Rabbit**", "rabbit**"), ("Rabbit", "Rabbits**", "Rabbit*")),
    Group("text", "71°27'48.68\"", None, ("71°27'48.68\"", "71°27'48.68\"."), ("71°27'48.68", "71°27'48.67\"",
        "71°27'")),
    Group("text", "（左）", None, ("（左）", "(左)", "（左）。"), ("(右)", "左右")),  # noqa: RUF001
    Group("choice", "（A）", ("红", "蓝", "绿"), ("A", "（A）", "红", "(A)", "A．红", "A。", "（A）红"), ("B",  # noqa: RUF001
        "蓝", "（B）"), ("A或B", "A、B", "红蓝")),  # noqa: RUF001
]
# fmt: on
ROWS = [
    (group.kind, group.gold, answer, group.options, (correct, parsed))
    for group in GROUPS
    for answers, correct, parsed in (
        (group.right, True, True),
        (group.wrong, False, True),
        (group.unread, False, False),
    )
    for answer in answers
]
