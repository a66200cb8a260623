"""What identifies a person is found and masked; what only looks like it is left."""

import subprocess
import sys
import time
from itertools import pairwise

import pytest

from shared.privacy.phi import Finding, find, mask, without_names


def masked(text: str) -> str:
    return mask(text, find(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mr. Okafor asked about his dose.", "[NAME] asked about his dose."),
        ("Seen by Dr. Lena Hartmann.", "Seen by [NAME]."),
        ("A 61-year-old man, Peter K., has gout.", "A 61-year-old man, [NAME], has gout."),
        ("The patient, Laura Wilson, has gout.", "The patient, [NAME], has gout."),
        ("She was treated at Lakeview Hospital.", "She was treated at [PLACE]."),
        ("He was seen at our Portland clinic.", "He was seen at our [PLACE]."),
        ("She lives in Toledo.", "She lives in [PLACE]."),
        ("He lives at 48 Birch Road, Salem, OR 97301.", "He lives at [PLACE]."),
        ("Surgery was on March 3rd, 2024.", "Surgery was on [DATE]."),
        ("Surgery was on 03/14/2024.", "Surgery was on [DATE]."),
        ("Admitted in March 2024.", "Admitted in [DATE]."),
        ("MRN: QX-55120 was opened.", "MRN: [RECORD_NUMBER] was opened."),
        ("Policy number 77120045 applies.", "Policy number [RECORD_NUMBER] applies."),
        ("Call 312-555-0175.", "Call [PHONE]."),
        ("Write to l.h@example.org today.", "Write to [EMAIL] today."),
        ("SSN 219-09-9999.", "SSN [SOCIAL_SECURITY_NUMBER]."),
        ("From 10.20.30.40 today.", "From [IP_ADDRESS] today."),
        ("A 93-year-old woman fell.", "A [AGE_OVER_89]-year-old woman fell."),
        ("Paid by card 4539148803436467.", "Paid by card [ACCOUNT_NUMBER]."),
        ("MRN 800-633-4227 was opened.", "MRN [RECORD_NUMBER] was opened."),
        ("She was seen at Mercy Family Health.", "She was seen at [PLACE]."),
        ("She lives in Georgia, near Atlanta.", "She lives in Georgia, near [PLACE]."),
        ("Seen at Jamaica Hospital.", "Seen at [PLACE]."),
        ("Seen at St. Anne's Health, then at Orlando Health.", "Seen at [PLACE], then at [PLACE]."),
        ("Emily Carter has arthritis.", "[NAME] has arthritis."),
        ("John D. osteoarthritis plan.", "[NAME] osteoarthritis plan."),
        ("Peter K. was seen at UWMC.", "[NAME] was seen at [PLACE]."),
        ("Ask Virginia about it.", "Ask [NAME] about it."),
        ("MRN 2003-2011 and chart 440/512.", "MRN [RECORD_NUMBER] and chart [RECORD_NUMBER]."),
        ("Case number 2003-2011 is hers.", "Case number [RECORD_NUMBER] is hers."),
        ("Patient 4451209 had a fall.", "Patient [RECORD_NUMBER] had a fall."),
        ("Pt 44512 s/p CABG.", "Pt [RECORD_NUMBER] s/p CABG."),
        ("The number given was 4410-2200.", "The number given was [RECORD_NUMBER]."),
    ],
)
def test_an_identifier_is_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "A 67-year-old woman with Crohn's disease and Graves' disease.",
        "Is Parkinson disease more frequent in men?",
        "Stevens-Johnson syndrome after amoxicillin.",
        "The Wells score was 3 and the Glasgow coma scale 15.",
        "Diagnosed in 2021, with a relapse last summer.",
        "Take 500 mg twice a day, 1/2 tablet at night.",
        "Blood pressure 120/80, HbA1c 7.5 %, GFR 45 mL/min/1.73 m2.",
        "The National Cancer Institute gives advice.",
        "Compare Humira with Enbrel in African American patients.",
        "Vitamin B12 and omega-3 were prescribed.",
        "The share was 0.5077172505113161 here and 28.34747652200631 there.",
        "In this group p=0.447902240533 and 60.9612025550143 there.",
        "Call 1-800-Medicare (1-800-633-4227) or 800-772-1213.",
        "The trial NCT00372320 has begun: https://www.clinicaltrials.gov/ct/show/TIS032007 says more.",
        "Ask at a State Health office about Family Health and Home Health.",
        "The Report of the Surgeon General is on ClinicalTrials.gov.",
        "Rinse well. Don't smoke. Get an X-Ray.",
        "What is Williams Syndrome?",
        "He moved to Norway; people in the United States, Kenya and Uganda, or in Asia.",
        "Ask the Department of Health about School Health and Teen Mental Health.",
        "The Patient Health Questionnaire and a Royal College of General Practitioners.",
        "Symptoms of Chiari malformation, of Brody myopathy and of La Crosse encephalitis.",
        "Crystal arthropathies, Opitz G/BBB syndrome, Prieto X-linked retardation.",
        "What is Sun Exposure for Young People? Get a Chest X Ray.",
        "Positive airway pressure (CPAP): adherence at CPAP was measured; cases seen at C3.",
        "They asked a Research Nurse. Both agreed.",
        "Admissions fell in 2003-2011, and in the group 2003-2011 most of all.",
        "Carriers of rs7412358 had less of it (OMIM 104310, PMID: 20301414).",
        "Platelets ranged from 5000-21000/mm and ammonia was 1500-2500 mol/L.",
        "In the control group 131 (54.3 %) improved, in the active group (204 ± 12) all.",
        "In the treated group 145/212 relapsed; the patients in this study were 512.",
        "Variants between codons 2210-2390 were frequent in group 240 patients later.",
        "Group 1-82.5 % and group 2-71.4 % were free of it; stage pT2-3aN1-2M0.",
        "Registered as ISRCTN40273119, ACTRN12609000312246 and DRKS00004120.",
        "Call Medicare at 18006334227, TTY 18774862048.",
        "The mean age was 44 ± 10.95 years, the range 28-94 years, or 28 to 94 years.",
    ],
)
def test_medical_text_without_identifiers_is_left_as_it_is(text: str) -> None:
    assert masked(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PATIENT NAME: JOHN MILLER", "PATIENT NAME: [NAME]"),
        ("Mr. JOHN MILLER came in", "[NAME] came in"),
        ("Mr. CHIDI ABIODUN came in", "[NAME] came in"),
        ("Dr. SMITH saw her", "[NAME] saw her"),
        ("DR. O'BRIEN-JONES AND DR VAN DER BERG SAW HER", "[NAME] AND DR [NAME] SAW HER"),
        ("PER DR. SMITH'S NOTE", "PER [NAME]'S NOTE"),
        ("pt john smith seen by dr jones", "pt [NAME] seen by dr [NAME]"),
        ("my name is john smith and i smoke", "my name is [NAME] and i smoke"),
        ("Patient: Miller, John", "Patient: [NAME]"),
        ("Patient: Okafor, Chidi has gout", "Patient: [NAME] has gout"),
        ("Patient: MILLER, JOHN. DOB to follow", "Patient: [NAME]. DOB to follow"),
        ("PATIENT NAME: OKAFOR, CHIDI SEX: F", "PATIENT NAME: [NAME] SEX: F"),
        ("Patient name: Łukasz Nowak", "Patient name: [NAME]"),
        ("Dr Nguyễn and Dr. ŻAK", "Dr [NAME] and [NAME]"),
        ("Dr Nguye\u0302\u0303n saw her", "Dr [NAME] saw her"),
        ("Dr. 王小明 saw her", "[NAME] saw her"),
        ("Patient name: محمد علي", "Patient name: [NAME]"),
        ("JOHN MILLER DENIES PAIN", "[NAME] DENIES PAIN"),
        ("'JOHN MILLER' and -JOHN MILLER", "'[NAME]' and -[NAME]"),
        ("JOHN MILLER: I HAVE PAIN", "[NAME]: I HAVE PAIN"),
        ("JOHN-PAUL MILLER IS WELL", "[NAME] IS WELL"),
        ("DE LA CRUZ, JUAN IS WELL", "[NAME] IS WELL"),
        ("LA-TOYA MILLER DENIES PAIN, DE-SHAWN JONES TOO", "[NAME] DENIES PAIN, [NAME] TOO"),
        ("PT LA-TOYA MILLER, patient la-tonya miller", "PT [NAME], patient [NAME]"),
        ("REFERRAL OF MARY YOUNG, AND OF JAMES T., FOR COPD", "REFERRAL OF [NAME], AND OF [NAME], FOR COPD"),
        ("PT JOHN C/O PAIN", "PT [NAME] C/O PAIN"),
        ("pt john white male", "pt [NAME] white male"),
    ],
)
def test_a_name_in_any_case_and_alphabet_is_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "MR IMAGING SHOWS A LESION",
        "MR BRAIN AND MR HEAD: WHITE MATTER LESIONS, MR WHITE MATTER LESIONS",
        "MS CONTIN WAS GIVEN; MS SYMPTOMS, ms patients",
        "PT STABLE",
        "HISTORY: NONE. ALLERGIES: NONE. PLAN, A. REST",
        "E. COLI, H. PYLORI, C. DIFFICILE, S. AUREUS AND P. VIVAX WERE FOUND",
        "CT: L. STONE 5 MM. STONE, L. KIDNEY. TAKE 2 TABS P.O. DAY 1. PT: STONE, L KIDNEY",
        "VITAMIN D. WALKER USED AT HOME. PLAN: A. STAPLES OUT B. SCALES AT HOME",
        "PATIENT: DENIES PAIN",
        "DR RECOMMENDED REST",
        "PATIENT MAY WALK. PT WILL REST. PT WEAK",
        "my dr said i may rest; the patient will need a long rest",
        "the doctor may call, and the nurse will help",
        "Nurse ICU, Doctor MRI",
        "DRUG NAME: METFORMIN",
        "Name: Metoprolol Succinate",
        "PATIENT NAME: UNKNOWN, or Patient name: unknown",
        "mother: Diabetic, Obese",
        "BREAST CANCER AND LUNG CANCER IN WOMEN OF AMERICA, ASIA",
        "WILSON DISEASE AND MARTIN BELL SYNDROME",
    ],
)
def test_words_in_any_case_that_name_nobody_are_left(text: str) -> None:
    assert masked(text) == text


def test_without_names_only_what_points_at_one_person_is_masked() -> None:
    text = "My patient Peter K., MRN 4451209, aged 93, saw us in Leeds on 3 March 2024; call 020 7946 0018."
    text += " They wrote from 10.20.30.40."
    hidden, any_hidden = without_names(text)
    assert any_hidden
    assert hidden == (
        "My patient [NAME], MRN [RECORD_NUMBER], aged 93, saw us in Leeds on 3 March 2024; call [PHONE]."
        " They wrote from [IP_ADDRESS]."
    )
    assert without_names("Is malaria found in Leeds?") == ("Is malaria found in Leeds?", False)


def test_findings_are_in_order_and_do_not_overlap() -> None:
    text = "Dr. Amy Stone saw Peter K. (MRN 4451209) at Lakeview Hospital on March 3rd, 2024."
    findings = find(text)
    assert [each.type for each in findings] == ["NAME", "NAME", "RECORD_NUMBER", "PLACE", "DATE"]
    assert all(a.end <= b.start for a, b in pairwise(findings))


def test_what_stands_between_findings_is_untouched() -> None:
    assert mask("a bc d", [Finding("NAME", 2, 4, 1.0)]) == "a [NAME] d"


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert masked("Write to l.h@example.co.uk or see https://example.org/l.h now.") == (
        "Write to [EMAIL] or see [URL] now."
    )


def test_whoever_looks_for_names_loads_no_language_model() -> None:
    """It takes seconds and hundreds of megabytes; whoever needs one finds it as before."""
    program = """
import importlib.util, sys
from shared.privacy.phi import find
assert find("Mr. Okafor asked.")
for name in ("torch", "transformers"):
    assert name not in sys.modules, name
    assert importlib.util.find_spec(name), name
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    "unit",
    [
        "WHAT SHOULD I EAT FOR BREAKFAST ",
        "What Should I Eat For Breakfast ",
        "A-",
        "J. M. ",
        "our Aa ",
        "DE LA CRUZ, JUAN ",
        "LA LA LA X JOHN MILLER ",
    ],
)
def test_the_time_grows_linearly_with_the_text(unit: str) -> None:
    def seconds(length: int) -> float:
        text = (unit * (length // len(unit) + 1))[:length]
        started = time.perf_counter()
        find(text)
        return time.perf_counter() - started

    seconds(1000)
    small = min(seconds(2_500) for _ in range(3))
    large = min(seconds(20_000) for _ in range(2))
    assert large < 8 * small * 4, "eight times the text took more than thirty-two times as long"
