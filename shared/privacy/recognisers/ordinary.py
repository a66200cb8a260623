"""Names on the census's lists that are ordinary words too: in capitals or small letters they are no names.

It is data. What words.py lists with a capital is not repeated; the most frequent surnames are left out.
"""

_ORDINARY = """
able agent al all almond alpha alt alter amber anger angle angles app arch areas arent argue arms art ary
ash au aura awkward back bad bail balding ball balls ban band bank bare barley barre barrier barrow bars
base bash basket bath beach beam beams bean beans bear beard bears bee been beer began begin below belt
bench bent beverage bias big bigger bill billing bills binder bird bitter blade blades bland blank blanks
blind block blocker blood blow blue blunt bo board bob bodily body bogus bold bone bones book books boot
boots border borders born borne borrow boss both bottom bounds bow bowling box brace brake bran branch brand
brands brandy bread breeding bright bring brittle broad brothers brow brown brush bud bull bump bunch burden
burn bury butter button cage call camp camps canal cancel candy cane canning cap car card cardinal carrier
carry case cash cast centers certain chain chamber chambers chance channel charity check cheek cheeks cherry
chester chew chi childs chill chin choice church circle clamp clause claw clear clever click client close
cluster clutter coach coast code coffee coil cola colas collar colli colon combs comes comfort comp
conception cone cones confer congo conn constant cool cope copper cords core corn corner corners corns
corpus cost cotton couch council counter counts court courts cousin cousins cover cradle cramp crew cross
crown cruise crystal cue cuff cure curl curry cutting daily dam dance dark dash dates dawn days deal dear
deb deep deer degree delay delta der dial dome don done doom door double down drain dress drew driver drown
drum dry dryer du dull duty dye ear edge el else em era ester even every eye fail failing fails fair faith
fallen falling falls fan farmer fast favor favorite fear fears fee fees fell felt few field figures file
files fill fine finger fish fitting fix flavors flight flood flower flowers fluke fly folds folk folks font
foot force forget forth forward fraction frame frank free freed freeze fresh fried friend friendly fries
fruit fruits fuss gain gains games garden gate gaunt gauze gear gene gentle gift glad glass go goes going
gold good goods grace graft gram grams gran grand grant grass grew grief grill gross ground grounds grow
guard guess guest gum guy ha hair halt hammer hand handler hands handy hang hard harden harder harm harms
harness harsh hatch hauser hazard head heal heap heard heart hee height held helper hence herb heritage high
hives holder holding hole holiday hollow homes honey hook hooks hope hopes horn hose host house hover hung
hunger hurry hurt husband ice im inch ion iris iron island job judge jump junior just keep kettle key keys
kick kidney kill killin kind kinder kitchen knee knuckles la labor lack lady lamp land landing lands lard
large larger later laughter law laws lawyer lax lay layer le leaf leak leaks lean learn learned leisure
lemon len less lesser lies lieu light like likes limb line linear lines linger link lint liter livers loader
loan lobe lock locks longest loo look loop loose lose loss loud louder love lovely low lower lowers lung ma
magic main major maker manner manual many mark marker marks marrow mask mass mast master mates matter max
mayo mayor mc meals mean means mee members memory mention mess messenger meta mi miles milks million min
mines minor minus miracle mix mock mode model mole moles mom money mood more morning most mount music nail
nails natal near necessary ned needles neighbors neighbours nephew nest newborn ng nicely nickel niece no
nodal noon null numbers oats ocean odor offer officer ok old olds olive oram orange organ ours overall
overly pack pages pair pal pale palm palms para parent parks pass pat patch patience pay pea peace peak
peaks pear peel peels peer pen people peri person persons pick pili pill pillow pilot pin pinch ping pink
pipes place plain plant plants plaster plate pleasant plenty point pointer points polite pool poor pop port
ports poster pound pounds pour power prayer press pretty prime prior profit proper proud province puff
pulling purchase purpura quick ra race rain ramp range rank rash rather ray razor re reach read reading
ready real reason reasons records red reddish register render rich ridge ridges right ring rise rising river
rob robin rock rocks rod roles roll rolling root roots rose rota rough round rounds row rude rule running
rye safe said sale sales salmon sample samples sand sane sans save say screen screws sea seal seals seat
seats see seed seeds self sell sells semen senior server service session sessions settle settles sever shade
shake shall sham sharp shave shed sheets shell shield shin shock shoe shorter shoulders showers shown shows
si sick sides silver simpler sin sine sink sis sites situ six small smaller smart smoke snow so sober sole
soles solo son sons soon space span speak speaks speed spina spoon spotted spray springs square stack stacks
staff stain stains stair stairs stamp staple star start steady steel steer steward stick stiff still stock
stones stops storms story stout straight strain strand strange straw stream street streets stretch strong
struck stuck student study stump styles such sue sugar suite suits sum super surface surgeon swab swallow
sweat sweet swim takes tall tan tape tea tee temple temples tennis than then threat thrush tiger till tone
tongue torn touch town toy trace trail treat trees tremble trial trim trout true trunk try tune twist um
union upright urban van ver vessels vest via vial view vital von wait waits wake walk walks wall walls warm
warn wash water waters wax way ways wear wearing wedding wedge wee weekly weeks weight welcome well wheat
whites wild willing wind wine wing wire wisdom wiser won wonders wooden word work worker works worm worth
yeast yellow young younger
"""
ORDINARY = frozenset(_ORDINARY.upper().split())
