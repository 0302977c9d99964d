"""Where the paper's print (or a figure copied from it) cannot be right, found by recomputing it."""

from __future__ import annotations

ERRATA: dict[str, str] = {
    "E1": "Table 1 prints stride 2 for the last depthwise layer, whose printed input and output are both 7x7. It is "
    "stride 1: only so do the sizes, the total of 569 million and the authors' own code (TF-slim) agree.",
    "E2": "Table 2 prints 1.19 % for Conv 3x3. The layer costs 10,838,016 of 568,740,352 multiply-adds, 1.91 %: two "
    "digits are swapped, and with 1.91 the column sums to 100.",
    "E3": "Section 4.4 gives PlaNet's MobileNet 0.58 million multiply-adds. The body alone costs 0.568 billion: "
    "billion is meant.",
    "E4": "Section 4.4's 10 million parameters of the last layer on 1,024 features are about 9,760 cells; the 26,263 "
    "cells of the PlaNet paper of 2016 would need 26.9 million. How many cells and which photos stand behind Table 11 "
    "was not published, and its PlaNet column is of a later model than that of 2016.",
    "E5": "The teacher of Table 12 has 7.5 million parameters in the table and 75 million in section 4.5.",
    "E6": "Table 14's fourth row is printed as 0.75 MobileNet-128 at 166 million. That is what alpha 0.75 costs at "
    "160 px; at 128 px it is 106 million, as in the row below it.",
    "E7": "Table 12's 45 and 15 million at alpha 0.25 are above the network's cost. A first layer of at least 16 "
    "channels instead of 8 gives both; that the authors had one is an inference.",
    "E8": "TF-slim's list of the released models prints wrong multiply-adds for alpha 0.75 (317, 233, 162, 104 for "
    "325, 239, 166, 107) and for 0.25-192 (34 for 30). The figure uses costs computed here.",
    "E12": "Table 13's 19.3 is the score on 8,000 pictures held out of COCO 2014; the same model has 18.8 on test-dev "
    "(Huang et al., arXiv:1611.10012). COCO val2017 is not comparable: by the sets' definitions most of it was "
    "training data there, which is an inference.",
    "E14": "Table 14's 1e-4 accuracy is on private faces and not defined in the text. On LFW's 3,000 pairs of "
    "different people a rate of 1e-4 cannot be measured; ours is LFW's accuracy over ten folds.",
    "E16": "Stanford Dogs is made of pictures of ImageNet: weights or a teacher trained on ImageNet may have been "
    "trained on its test pictures, so that their score may be too high.",
}
