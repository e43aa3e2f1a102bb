"""Verdicts on multiple choice, grouped by gold."""

from __future__ import annotations

from tests.verdict_groups import Group

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
CHOICES = [
    # A letter that is set apart behind a value is a second answer; a unit, a variable and a place are not.
    Group("choice", "(B)", ("red", "40", "blue", r"2\sqrt{2}"), (
        "It is 40 (B).", "It is 40, so B.", "The angle at A is 40.", "It is 40 J/K", "40 is (B)", "So 40 equals (B).",
        "It is 40, from A to C.",
    ), (r"2\sqrt{2} is (D)", "red was (A)"), (
        r"It is 40 (B)\\(A)", r"It is 40 (B)\\\\(C)", r"(B)\\(A)", "It is 40, A.", "It is 40 [A]", "It is 40 A)",
        "It is 40 / A", "It is 40; C", "It is 40: C", "It is 40 (a)", "It is 40 (B) a)", "It is 40 {C}",
        "It is 40 and A", "It is 40 & A",
        "It is 40 `A`", "It is 40 'A'", "It is 40 *A*", "It is 40 _A_", "It is 40 Ⓐ", "It is 40 【A】",
        "It is 40 (B) A.", "It is 40 (B) and A.", r"2\sqrt{2} is (B)", r"$2\sqrt{2}$ equals (B)", r"\sqrt{8} is (B)",
        "40 is (A)", "40.0 is (A)", r"The value 2\sqrt{2} is (B)",
    )),
    # Points in the subject are no answers, though its numbers may be those that are stated.
    Group("choice", "(A)", ("4", "5", "6", "7"), (
        "If 4 lines, A, B, C and D meet, the number of points is 4.", "There are four points.",
        "Since 4 points (A, B, C, D) are shown, the number of points is 4.",
        "When 14 points, A, B and C, are joined, the number of lines is 4.",
    ), ("There are four (B).",), (
        "If 4 lines, A, B, C and D meet, the number of points is 4, B.", "There are four, B.",
    )),
    # A function word behind a capital says that it is no article.
    Group("choice", "(B)", None, ("So a red car is (B)", "A red car is (B)"), (), (
        "A but also (B)", "A not (B)", "A with (B)", "A plus (B)", "A instead of (B)", "A for (B)", "A which is (B)",
        "letter A and (B)", "letter A or (B)", "point A but also (B)",
    )),
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
    # A whole number and a fraction are two options, and no mixed number.
    Group("choice", "(A)", ("1", "red", "blue", r"\frac{1}{2}"), ("A. 1", "(A) 1"), (r"D. \frac{1}{2}", "1/2"),
          (r"A. 1 \frac{1}{2}", "(A) 1 1/2", "A. 1 0.5", r"1 \frac{1}{2} (A)")),
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
    Group("choice", "（A）", ("红", "蓝", "绿"), ("A", "（A）", "红", "(A)", "A．红", "A。", "（A）红"), ("B",  # noqa: RUF001
        "蓝", "（B）"), ("A或B", "A、B", "红蓝")),  # noqa: RUF001
    # A text with its letter behind it, in quotes, with reasons; a clause that leads to the answer.
    Group("choice", "(A)", EFFECTS, (
        "decrease (A)", "It will decrease (A)", "The deer will decrease, corresponding to option A", 'A, "decrease."',
        '"A."', '"decrease"', "letter A", "The next shape is letter A.",
        "In the web, if the grass dies, the deer will decrease.",
        "The deer will decrease. This is because they starve.",
        "Since it is dry, the deer will decrease.", "The effect of rain or snow on the deer is decrease.",
        "Yes, the deer will decrease (A)", "decrease, with some delay",
        "The effect if the grass dies is (A) decrease.", "The best option for the deer is A.",
    ), ("increase (B)", 'B, "increase."', "letter B", "The deer will increase. This is because they eat."), (
        "increase (A)", "decrease (B)", "decrease (A) or (B)", "not decrease (A)", "decrease (a)", 'A, "increase."',
        "The deer will decrease, corresponding to option B", '"A" or "B"', "letter A or B",
        "If the grass did not die, the deer would decrease.",
        "The deer will decrease. This is because of the increase.",
        "The deer will decrease. This is because they starve. They increase.",
        "The deer decrease, with an increase later",
        "The deer will decrease. They will increase.", "In the web, the deer do not decrease.", "decrease. Increase.",
        "The effect of decrease or increase is (A).",
        "C / (A)", "B = (A)", "A -> (B)", r"A -> \boxed{B}", "B - it falls (A)", "C + decrease (A)",
    )),
    # A number or a predicate beside another option, by letter or in words.
    Group("choice", "(A)", ("35", "red", "blue", "none"), ("The sum is 35.", "There are 35 balls (A) in 2012."), (),
          ("It is red (B), 35", "It is red, 35", "So it is (B), the sum is 35", "The sum (C) is 35.")),
    Group("choice", "(B)", ("35", "red", "blue", "none"), ("The colour (B) is red.",), (), ("The colour (C) is red.",)),
    Group("choice", "(B)", (r"\frac{3}{5}\pi", r"\frac{5}{3}\pi", r"5\pi", r"10\pi"), ("(B) 5 π/2", r"(B) 5\pi/3"),
        ("5π",), ("(B) 5π", "5π/2")),
    # Words and signs that deny an option, or measure against it; the same words elsewhere in a sentence leave it alone.
    Group("choice", "(A)", EFFECTS, (
        "The effect that lacks an equal is decrease.", "The deer will decrease, more than before.", "(A)~~decrease",
        "The opposite effect is decrease.",
    ), (), (
        "It will hardly decrease.", "Hardly decrease", "It is false that the deer decrease.",
        "The deer fail to be on the decrease.", "Suppose the deer decrease.", "Let the deer decrease.",
        "Had the deer to decrease, we would see it.", "Nobody would say decrease.", "It is anything but decrease.",
        "It would have been decrease.", "The claim that the deer decrease is false.", "I doubt that the deer decrease.",
        "The effect is more than decrease.", "(A) is false.", "(A) is a distractor.", "A. ❌", "(A) ✗", "A（错误）",  # noqa: RUF001
        "A (false)", "A. false", "~~A~~", "~~decrease~~", "decrease？", "A？",  # noqa: RUF001
        "A. Nope", "A. Oops, the other", "不是decrease", "A. 不对",
    )),
    Group("choice", "(B)", EFFECTS, (
        "B because it rains", "B since it rains", "I would choose B.", "I think it is increase.",
    ), ("A because it rains", "I would choose A."), (
        "B because it is not B", "B because C falls", "I doubt it is increase.", "I would not choose B.",
        "I choose B or A.", "I choose", "E red", "E increase", "E shows increase best", "B so C",
    )),
    Group("choice", "(C)", EFFECTS, ("C. A drought does nothing", "C. A steady number"), (), (
        "C. A is also correct", "C. But A is possible too", "C. A and so on", "C. A fits too", "C. A would be right",
    )),
    Group("choice", "(A)", ("blue", "red"), (
        "It is blue", "The almost vertical line is blue.", "The line that is nearly flat is blue.",
        "The sky is almost always blue.",
    ), (), (
        "It is almost blue", "It is very nearly blue.", "The sky is almost completely blue.",
        "The colour is practically a blue.", "almost blue",
    )),
    Group("choice", "(B)", DEGREES, ("It is 40°.", "It is about 40°."), (), (
        "It is more than 40°.", "It is less than 40°.", "It is twice 40°.", "It is anything but 40°.",
        "The angle is half of 40°.", "The angle may be 40°.", "It is almost 40°.", "The angle is nearly 40 degrees.",
    )),
    Group("choice", "(B)", None, ("B. False", "B (false)", "B: no"), (), (
        "B. ❌", "B: ✗", "B is false", "(B) is wrong",
    )),
    Group("choice", "(D)", ("15*\\degree", "30*\\degree", "45*\\degree", "60*\\degree"), (
        "60 degrees", "60", "60°", "(D) 60", "If AB = AO, the measure of angle ABO is 60 degrees.",
    ), ("45°",), ("60 cm", "(D) 45", "45 or 60 degrees")),
]
# fmt: on
