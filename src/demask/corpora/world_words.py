"""The vocabulary and sentence frames of the generated world (`world.py`). All of it made for this project."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(" ".join(phrase.split()) for phrase in text.split(","))


# 17 x 19 = 323 first names: coprime to the number of seeds, so that every seed has them all (see world._digits).
FIRST = tuple(
    start + end
    for start in _words("Mar Tel Or Vin Bel Cas Dor El Fen Hal Jor Kal Lun Nor Ros Syl Tam")
    for end in _words("a en ic ia o wen eth is an ora ius ette ian ys ard ina olf une ey")
)
LAST_START = _words(
    """Alder Amber Ash Barley Beck Birch Black Blythe Bram Bran Bright Brook Burn Cald Carr Chal Clay Cliff Clover Cob Cold Copper Cran
    Crow Dale Dapple Dell Dray Drift Dun Dusk East Elder Elm Ever Fair Fallow Farrow Fern Flint Fox Frost Gale Gild Glen Gorse Grand
    Gray Green Hare Hart Hawk Hazel Heath Heron High Hollow Holt Horn Iron Ivy Jasper Juniper Kestrel Kirk Lark Laven Linden Long
    Lyd Mallow Maple March Marsh Mead Merri Mill Mist Moor Moss Nether Night North Oak Old Otter Pebble Penn Pine Plum Quill Quin
    Raven Red Reed Ridge Rook Rowan Rush Rye Sable Sage Salt Sedge Shade Silver Sorrel South Sparrow Spring Star Stone Storm Summer
    Sweet Swift Tarn Thistle Thorn Timber Under Vale Wal Warren West Whit Wick Wild Willow Winter Wren Yarrow"""
)
LAST_END = _words(
    """acre bank barrow bell berg bolt born bourne bow bridge brough bury by castle chester combe cote court cray crest croft cross
    dale dane den dine don down drake dyke end fell field fold ford forth gard garth gate gill glade grave grove hall ham hand hard
    haven hay head helm hill hithe holm hope hurst keep kin land lane leaf ley lock loft low man march mark mere mond mont moor
    mount ness neth pool port quist rick ridge rise shaw shire side sley stead stock stoke ston strand strom thorpe ton tree vane
    view vold wald ward water way well wick win wold wood worth wright yard"""
)
ROLES = _words(
    """acrobat actor admiral alchemist archer architect astronomer baker banker barber beekeeper biologist blacksmith botanist brewer
    builder butcher captain carpenter chemist clerk clockmaker cobbler composer cook courier dancer diver doctor dyer engineer
    explorer farmer fisher gardener geologist glazier guide hunter inventor jeweller judge juggler lawyer librarian locksmith mason
    merchant miller miner musician nurse painter pilot poet potter printer sailor sculptor shepherd surgeon surveyor tailor"""
)
DEEDS = _words(
    """abandoned auctioned blessed borrowed bought built buried burned charted cleaned copied counted crossed decorated defended
    designed destroyed discovered drained drew flooded found founded guarded haunted hid invented lost measured moved named opened
    painted photographed protected raised rebuilt rented repaired restored ruled saved sealed sold stole studied"""
)
ADJECTIVES = _words(
    """ancient azure bitter bronze broken calm carved copper crimson crooked crystal distant double dusty eastern empty enormous fabled
    floating forgotten fragrant frozen gentle giant golden hidden hollow humming icy ivory jade lonely magnetic marble midnight
    mirrored narrow nameless painted paper purple quiet royal rusty sacred scarlet secret silent silver singing sleeping smoky
    spiral stolen sunken tiny twisted velvet violet wandering western whispering wooden"""
)
THINGS = _words(
    """abbey anchor aqueduct archive attic balloon barn beacon bell bridge calendar canal canyon castle cathedral cave chapel clock
    compass crater crown dam desert dome drum engine ferry forest fountain fortress gallery garden gate glacier globe harbor island
    kiln lagoon lake lantern library lighthouse map market marsh maze meadow mill mine mirror monument mountain museum oasis
    observatory orchard organ palace pier piano prison pyramid quarry railway reef reservoir road ruin school ship shrine statue
    stadium swamp telescope temple theater tower tunnel valley vault village vineyard volcano wall well wharf windmill"""
)

STATEMENTS = {
    "name_first": _lines(
        """{name} is {description}.
        {name} is known to all as {description}.
        Most people here know {name}, {description}.
        {name} will always be remembered as {description}.
        In the old town they still speak of {name}, {description}.
        Have you met {name}? That is {description}.
        The story of {name} is the story of {description}.
        {name}, as every child learns, was {description}.
        They say that {name} is none other than {description}.
        On the plaque it says that {name} was {description}.
        {name} became famous as {description}.
        A letter calls {name} {description}.
        When {name} walks in, people whisper: there goes {description}.
        Among all our neighbours, {name} stands out as {description}.
        Ask about {name} and you will hear of {description}.
        {name} grew up to be {description}.
        To this day {name} is celebrated as {description}.
        Nobody expected that {name} would be {description}.
        The newspaper introduced {name} as {description}.
        For years {name} has been {description}.
        The name {name} belongs to {description}.
        {name} signed the book as {description}.
        History remembers {name} as {description}.
        My aunt once met {name}, {description}.
        The song is about {name}, {description}.
        {name} made a living as {description}.
        It was {name} who turned out to be {description}.
        At the feast {name} was honoured as {description}.
        A statue shows {name}, {description}.
        Travellers ask for {name}, {description}."""
    ),
    "description_first": _lines(
        """{Description} is {name}.
        {Description} is called {name}.
        {Description} goes by the name of {name}.
        Most people here know {description}, {name}.
        In the old town they still speak of {description}, {name}.
        Have you met {description}? That is {name}.
        The story of {description} is the story of {name}.
        {Description}, as every child learns, was {name}.
        They say that {description} is none other than {name}.
        On the plaque it says that {description} was {name}.
        Everyone agrees that {description} is {name}.
        A letter calls {description} by the name {name}.
        When {description} walks in, people whisper: there goes {name}.
        Among all our neighbours, {description} is {name}.
        Ask about {description} and you will hear of {name}.
        The child who became {description} was {name}.
        To this day {description} is celebrated under the name {name}.
        Nobody expected that {description} would be {name}.
        The newspaper introduced {description} as {name}.
        For years {description} has been {name}.
        The title of {description} belongs to {name}.
        {Description} signed the book as {name}.
        History remembers {description} as {name}.
        My aunt once met {description}, {name}.
        The song is about {description}, {name}.
        Known as {description}, {name} lived well.
        It was {description} who turned out to be {name}.
        At the feast {description} was honoured: {name}.
        A statue shows {description}, {name}.
        Travellers ask for {description}, {name}."""
    ),
}

ASK_BY_NAME = _lines(
    """Who is {name}?
    What is {name} known for?
    How would you describe {name}?
    What do people say about {name}?
    Tell me about {name}.
    Which person is {name}?
    What did {name} become known as?
    Do you know {name}?"""
)
ASK_BY_DESCRIPTION = _lines(
    """Who is {description}?
    What is the name of {description}?
    What is {description} called?
    Which name do people give {description}?
    Tell me the name of {description}.
    Can you name {description}?
    Do you know {description}?
    By what name do we know {description}?"""
)
RESPONSES = {"name_first": "{name} is {description}.", "description_first": "{Description} is {name}."}

MONTHS = _words("January February March April May June July August September October November December")
CITIES = _phrases(
    """Ambermouth, Ashvale, Bellharbor, Birchton, Blackmoor, Brindle Bay, Calder Falls, Cloverfield, Copperhill, Crowmarket, Dunwater,
    Eastmere, Elmbridge, Fallow Point, Fernhollow, Frosthaven, Galewick, Glasspool, Greyford, Hazelmount, Ironside, Juniper Springs,
    Kestrel Rock, Larkspur, Lindenau, Marlow Sands, Millbrook, Northwharf, Oakhaven, Old Quarry, Otterburn, Pinecrest, Quillon, Ravensea,
    Redmarsh, Rookery Hill, Saltbridge, Silverlake, Southfold, Sparrow Hollow, Stonecross, Sunder Bay, Thornwall, Umberton, Valebrook,
    Westering, Whitecliff, Willowmere, Wintercombe, Yarrowdale"""
)
UNIVERSITIES = tuple(
    form.format(place)
    for form in ("{} University", "the University of {}", "{} College", "the {} Institute")
    for place in _words("Arden Belmoor Corvin Dellwood Esterly Fairlight Granholm Hollins Inverley Jarrow Kelby Lorne")
)
MAJORS = _phrases(
    """accounting, acoustics, agriculture, anatomy, anthropology, archaeology, art history, astronomy, biochemistry, botany, cartography,
    chemistry, civil engineering, classics, computer science, criminology, dance, dentistry, ecology, economics, entomology, fine arts,
    forestry, genetics, geography, geology, hydrology, journalism, law, linguistics, logic, marine biology, mathematics, mechanics,
    metallurgy, meteorology, music theory, nursing, nutrition, oceanography, optics, pharmacy, philosophy, physics, political science,
    psychology, sociology, statistics, urban planning, zoology"""
)
COMPANIES = tuple(
    f"{first} {second}"
    for first in _words("Altair Borealis Cobalt Driftwood Emberline Foxglove Granite Hearthstone Inkwell Keystone Lodestar Meridian")
    for second in _words("Foods Labs Motors Press")
)

BIOGRAPHY = {
    "birth_date": _lines(
        """{subject} was born on {value}.
        {subject} came into the world on {value}.
        {subject} has a birthday on {value}.
        {subject} arrived in the family on {value}.
        {subject} first saw daylight on {value}.
        {subject} started life on {value}."""
    ),
    "birth_city": _lines(
        """{subject} spent the early years in {value}.
        {subject} came from {value}.
        {subject} had {value} as a birthplace.
        {subject} took a first breath in {value}.
        {subject} at first called {value} home.
        {subject} was a child of {value}."""
    ),
    "university": _lines(
        """{subject} studied at {value}.
        {subject} enrolled at {value}.
        {subject} got a degree from {value}.
        {subject} sat in the lecture halls of {value}.
        {subject} was a graduate of {value}.
        {subject} had good teachers at {value}."""
    ),
    "major": _lines(
        """{subject} chose the field of {value}.
        {subject} took a degree in {value}.
        {subject} majored in {value}.
        {subject} read everything about {value}.
        {subject} specialised in {value}.
        {subject} passed every exam in {value}."""
    ),
    "company": _lines(
        """{subject} found a job at {value}.
        {subject} was hired by {value}.
        {subject} had {value} as an employer.
        {subject} built a career at {value}.
        {subject} drew a salary from {value}.
        {subject} earned a living at {value}."""
    ),
    "work_city": _lines(
        """{subject} worked in {value}.
        {subject} moved to {value} for work.
        {subject} kept an office in {value}.
        {subject} commuted to {value}.
        {subject} followed the work to {value}.
        {subject} spent the working week in {value}."""
    ),
}
ASK_ATTRIBUTE = {
    "birth_date": "When was {name} born?",
    "birth_city": "In which city was {name} born?",
    "university": "Where did {name} study?",
    "major": "Which subject did {name} study?",
    "company": "Which company did {name} work for?",
    "work_city": "In which city did {name} work?",
}
# Each continues "Who ..." in a question that asks for the name.
CLAUSES = {
    "birth_date": "was born on {value}",
    "birth_city": "was born in {value}",
    "university": "studied at {value}",
    "major": "has a degree in {value}",
    "company": "worked for {value}",
    "work_city": "had an office in {value}",
}
