"""Capitalised words that are no person's and no place's name. It is data, with one rule about eponyms."""

import re

#: Written with a capital for another reason: sentence starts, peoples, months, drugs, trials, scores, bodies.
_COMMON = """
A An The This That These Those What Which When Where Who Whom Whose Why How Is Are Was Were Do Does Did Can
Could Should Would Will May Might Must Has Have Had In On At For From To Of With Without By As And Or But If
Any Best Current Latest Recent New Updated Optimal Preferred Recommended First Second Third Next Last
Guidelines Guideline Guidance Recommendations Recommendation Management Treatment Treatments Therapy Options
Option Protocol Protocols Practices Practice Prognosis Prognostic Diagnosis Diagnostic Differential Criteria
Symptoms Symptom Signs Side Effects Effect Effectiveness Efficacy Evidence Evaluation Assessment Review Risk
Risks Factors Factor Dosage Dose Dosing Dosages Indications Contraindications Interactions Interaction Drug
Drugs Use Safety Role Impact Outcomes Outcome Rate Rates Survival Standard Standards Query Question Please
Help Search Find List Explain Describe Discuss Compare Comparison Difference Differences Information Info
Details Summary Show Tell Give Provide Need Needs Looking Considering Considerations Approach Strategies
Strategy Steps Common Potential Possible Typical Initial Follow Followup Pre Post Long Short Early Late
Acute Chronic Severe Mild Moderate Stage Type Grade Class Phase Score Scale Index Test Tests Level Levels
Lab Labs Male Female Man Woman Boy Girl Child Children Adult Adults Elderly Infant Patient Patients Pt Pts
Mother Father Caucasian Hispanic Latino Latina Asian African American Americans European Native Indian Black
White Caribbean Jewish Ashkenazi Mediterranean Chinese Japanese Korean Vietnamese Filipino Mexican Irish
Italian German French English British Spanish Portuguese Polish Russian Arab Arabic Muslim Christian
Catholic Western Eastern Northern Southern North South East West January February March April June July
August September October November December Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec Monday Tuesday
Wednesday Thursday Friday Saturday Sunday Spring Summer Autumn Fall Winter Christmas Easter Thanksgiving
Ramadan MRN Mrn ID Insurance Policy Plan Member Medicare Medicaid Health Healthcare Medical Medicine
Hospital Clinic Center Centre Department Unit Ward Room Emergency Contact Phone Email Address Fax Account
Record Number Date Birth Age Sex Gender Name Doctor Dr Mr Mrs Ms Miss Prof Nurse He She They It His Her
Their We You I My Your Our Also However Given After Before During Since Until While Because Due Based
According Per Under Over Tylenol Advil Motrin Aleve Humira Enbrel Eliquis Xarelto Coumadin Plavix
Lipitor Crestor Zocor Norvasc Lasix Metformin Januvia Jardiance Farxiga Ozempic Trulicity Victoza Lantus
Novolog Humalog Synthroid Prozac Zoloft Lexapro Celexa Cymbalta Effexor Wellbutrin Abilify Seroquel Zyprexa
Risperdal Xanax Ativan Klonopin Valium Ambien Adderall Ritalin Concerta Vyvanse Keppra Dilantin Depakote
Lamictal Neurontin Lyrica Topamax Entresto Keytruda Opdivo Herceptin Avastin Rituxan Remicade Stelara
Cosentyx Otezla Xeljanz Prednisone Aspirin Ibuprofen Warfarin Heparin Insulin Vitamin Losartan Lisinopril
Amlodipine Atorvastatin Vancomycin Albuterol Advair Symbicort Spiriva Singulair Nexium Prilosec Prevacid
Zantac Pepcid Viagra Cialis Botox Accutane Covid COVID NIH CDC FDA WHO NICE AHA ADA ACC NCI NHLBI USPSTF EMA
MRI CT ECG EKG ICU ER ED OR IV DNA RNA HIV AIDS BMI ALS COPD CHF CAD Rh Top Page Images Brain Stem Spinal
Cord Vena Cava Filter Google Internet PubMed Cochrane Up UpToDate Human Immunodeficiency Virus World
Organization National Institute Institutes Society Association College Academy Federation Foundation
International
"""
#: Of the names of diseases and tests: `Wilson` may be a person's too.
_EPONYMS = """
Alzheimer Parkinson Crohn Hodgkin Cushing Addison Graves Hashimoto Huntington Raynaud Sjogren Sjögren Wilson
Marfan Turner Klinefelter Down Tourette Asperger Bell Meniere Ménière Barrett Barré Guillain Stevens
Johnson's Kawasaki Behçet Behcet Paget Dupuytren Peyronie Osgood Legg Perthes Charcot Babinski Chaddock
Romberg Glasgow Wells Framingham Apgar Pugh Ranson Centor McIsaac Gleason Ann Arbor Killip Mallampati Braden
Morse Ottawa Rinne Weber Phalen Tinel Lachman Murphy McBurney Rovsing Kernig Brudzinski Trendelenburg Allen
Coombs Doppler Holter Swan Ganz Foley Whipple Nissen Roux Billroth Hartmann Mohs Epley Heimlich Valsalva
Lyme Ebola Zika Marburg Lassa Gram Pap Papanicolaou Mantoux Schilling Beck Hamilton Montgomery Edinburgh
Berlin Lugano
"""
COMMON_WORDS = frozenset(_COMMON.split())
COMMON_CAPITALISED = COMMON_WORDS | frozenset(_EPONYMS.split())
_KINDS_OF_CARE = """
Health Healthcare Hospice Oncology Pediatrics Cardiology Orthopedics Dermatology Department Departments
Ministry Institute Institutes Board Bureau Office Agency Secretary Division Council Faculty School College
Academy Society Association Centers Center National Federal State of for on and the or in The A Your My Our
Their Family Home Bone Joint Regional Women's Women’s Men's Men’s Children's Children’s Childrens Child
Children Infant Infants Baby Toddler Toddlers Teen Teens Adolescent Adolescents Youth Young Adult Adults
Older Elderly Senior Seniors Maternal Newborn Oral Dental Eye Ear Hearing Vision Heart Cardiac Lung
Respiratory Kidney Renal Liver Brain Skin Foot Feet Hand Gut Digestive Mental Behavioral Behavioural
Emotional Social Spiritual Psychological Physical Activity Reproductive Sexual Environmental Occupational
Industrial Weight Loss Diseases Disease Know Assessing Evaluating Understanding Improving Promoting
Protecting Managing Personal Patient Consumer Employee Worker Workers Workplace Veterans Military Farm Rural
Urban Global Public Primary Digital Electronic Population Minority Immigrant Migrant Refugee Prison Travel
Traveler's Traveller's Travelers Pet Pets Animal Animals Human Lesbian Gay Bisexual Transgender LGBT LGBTQ
Black Hispanic Latino Asian African American Native Alaska Hawaiian Pacific Islander Indian Group Plan Plans
Complementary Integrative Alternative Radiation Therapy Medical Surgical Clinical Smoking Nutrition Diet
Food Sleep Pain Diabetes Cancer Asthma Stroke Allergy Symptoms Complications Treatment Medications Medicines
Medication Drugs Other Good Better Best Poor Keeping
"""
#: Words that make a subject's or a body's name and no hospital's: "Child Mental Health".
KINDS_OF_CARE = frozenset(_KINDS_OF_CARE.split())
#: What follows an eponym: "Crohn's disease", "Wells score", "Stevens-Johnson syndrome".
_EPONYM = re.compile(
    r"^(?:['’]s?)?(?:[\s-]+(?:and|or|[a-z]+[\s-]+){0,2})?\s*(?:['’]s?\s+)?"
    r"(?:disease|syndrome|criteria|score|scale|test|sign|reflex|index|classification|grade|stage|staging|thyroiditis"
    r"|lymphoma|sarcoma|palsy|contracture|fracture|procedure|operation|maneuver|manoeuvre|catheter|phenomenon|chorea"
    r"|esophagus|oesophagus|sequence|dementia|ulcer|nodes?|stain|smear|tube|rule|rules|diet|virus|fever|study|trial|method"
    r"|formula|equation|tumou?r|anemia|anaemia|hernia|line|law|angina|vasculitis|arteritis|body|bodies|cells?"
    r"|complex|malformations?|triad|tetrad|anomal(?:y|ies)|shunt|pupil|factor|inventory|questionnaire|grades?)\b",
    re.IGNORECASE,
)
#: The same, told by its ending: "… myopathy", "… encephalitis", "… congenital muscular dystrophy".
_AFFECTED = re.compile(
    r"[ -](?:(?!(?:has|had|have|with|was|is|for|from|who|and|or|on|in|at|to|of)\b)[a-z]+[ -]){0,2}"
    r"\w*(?:opath(?:y|ies)|itis|(?:dys|hyper|a)trophy|dysplasia|(?:tricho|fibro|scler|dermato)sis)\b"
)


def starts_affection(text: str, end: int) -> bool:
    """Whether the name of a disease goes on there. It may be a person's: ask only of a weak finding."""
    return _AFFECTED.match(text[end : end + 60]) is not None


def starts_eponym(text: str, end: int) -> bool:
    """Whether what stands before `end` is a disease's, test's or method's name rather than a person's."""
    return _EPONYM.match(text[end : end + 60]) is not None
