"""Word lists and the small English rules (articles, plurals, lists) that every topic of the grammar shares."""

from random import Random

Message = dict[str, str]

NAMES = """Anna Ben Clara David Emma Felix Grace Henry Isla Jack Kate Leo Maria Noah Olivia Paul Ruth Sam Tina Tom Lucy
Max Nina Oscar Peter Rosa Simon Alice Daniel Sarah Michael Laura James Julia Mark Sophie Adam Eva Omar Priya Chen Yuki Ali
Fatima Carlos Elena Ivan Marta Kofi Ada Bob Jane John Mary Lily George Helen Frank Amy Hugo""".split()

FOODS = """apples bananas bread cheese pasta pizza rice soup salad chocolate cake fish chicken eggs potatoes tomatoes
oranges grapes carrots beans noodles pancakes sandwiches cookies yoghurt honey strawberries mushrooms""".split()
DRINKS = "water tea coffee milk juice lemonade cocoa".split()
HOBBIES = """reading painting cooking gardening swimming dancing singing running walking fishing drawing cycling knitting
baking hiking chess photography gaming sewing sailing camping climbing writing""".split()
SPORTS = "football tennis basketball swimming cricket golf hockey rugby volleyball running skiing badminton".split()
INSTRUMENTS = "piano guitar violin drum flute trumpet cello harp".split()
MUSIC = "jazz rock pop folk classical country soul electronic".split()
PLACES = """Paris London Rome Spain Italy Japan Canada India Kenya Brazil Norway Greece Egypt Berlin Madrid Dublin Lisbon
Mexico Australia Portugal""".split()
JOBS = """teacher nurse doctor farmer driver baker cook gardener writer painter builder pilot student engineer artist
librarian musician plumber waiter shopkeeper mechanic""".split()
PETS = "dog cat rabbit hamster parrot goldfish horse pony turtle budgie".split()
SUBJECTS = "maths history science art music geography English biology".split()
CLOTHES = "coat hat shirt dress jacket scarf jumper skirt".split()
SEASONS = "spring summer autumn winter".split()
FAMILY = """mother father sister brother grandmother grandfather aunt uncle cousin son daughter wife husband friend
neighbour""".split()
ADJECTIVES = """small big old new happy quiet kind clever brave funny warm cold bright dark soft strong gentle careful busy
lucky tired hungry curious friendly lovely shiny wooden green red blue yellow little tall simple strange""".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty""".split()

# Ordinary English beyond the topics: it gives the tokenizer whole words and the fallback topic its endless subjects.
NOUNS = """ability accident account action address adventure advice afternoon agreement airport album amount angle answer
apartment argument army arrangement article attention audience author balance bank base basket bathroom battery battle
beach beauty bedroom belief bench bicycle bill blanket block blood board boat body book border boss bottle bottom box brain
branch bridge budget building business button camera camp candle capital captain card career carpet case castle cause ceiling
cell centre century certificate chain chair challenge chance change chapter character charge chart church circle citizen
city claim class climate clock cloud coast code coin collection college column combination comfort command committee
community company comparison competition complaint computer concept concert condition conference connection contract control
conversation copy corner cost council country couple course court coverage cover cream credit crime crisis crowd culture cup
curtain customer cycle damage danger data date deal debate debt decision degree delivery demand department design desk detail
development device dictionary difference dinner direction discount discovery discussion disease distance district document
door doubt drawer dream drive duty earth economy edge education effect effort election electricity element email emergency
emotion employee energy engine entrance environment equipment error evening event evidence example exam exchange exercise
experience experiment expert explanation eye face fact factory failure faith fashion favour feature fee fence festival field
film filter finance finger fire flight floor focus forest form fortune foundation frame freedom fuel function furniture
future gallery game garage garden gas gate generation gift glass goal gold government grass ground group growth guarantee
guest guide habit hall hammer hand harbour head heart heat height history hole holiday home hospital hotel hour house idea
image impact importance improvement income industry information injury insurance interest internet interview invention
investment invitation iron island issue item job journey judge key kingdom kitchen knee knife knowledge lab ladder lake lamp
language laptop law layer leader leaf league lesson letter level library licence life light limit line link lion list
literature loan location lock loss luck lunch machine magazine mail manager map market marriage material matter meal meaning
measure medicine meeting member memory menu message metal method middle mile mind minister minute mirror mission mistake
mixture model moment money month mood motor mountain mouth movement movie muscle museum nation nature neck needle network news
newspaper night noise note notice number object occasion ocean offer office oil operation opinion option order organ
organisation origin owner page pain pair panel paper parent park part partner party passage passenger passport past path
patient pattern payment peace pencil pension people percentage performance period permission person phase philosophy phone
photo phrase physics picture piece pipe plan planet plastic plate platform player pleasure pocket poem poet point police
policy politics pollution population position possession post potential pound power practice presence present president
pressure price prince principle printer prison prize problem process product profession profit programme progress project
promise property proposal protection protein public purpose quality quantity quarter queen question queue radio railway
range rate reaction reader reality reason receipt recipe record recovery reference refund region relation relationship
religion rent repair reply report request research resource response responsibility restaurant result revenue review
revolution reward river road robot rock role roof room root rope routine row rule safety salary sale sample sand satellite
scale scene schedule scheme science screen sea search season seat secret section sector security seed selection sense sentence
series service session shadow shape share shelf ship shirt shock shoe shop shoulder side sign signal silence silver situation
size skill skin sky society software soil soldier solution song sound source space speaker species speech speed spirit spoon
square staff stage stairs stamp standard star state statement station statue status steel step stick stomach stone storage
store storm story strategy stream street strength stress structure student study style subject success sugar suggestion
suit surface surgery surprise survey symbol system table target task tax team technique technology teeth telephone
television temperature tension term test text theatre theme theory thing thought thread ticket time tip title tool top topic
tour towel tower town track trade tradition traffic train transport treatment trend trial trip trouble truck trust truth
tunnel type uncle union unit universe user vacation valley value variety vehicle version victim video view village visit
visitor voice volume wage wall war wave way wealth weapon wedding weekend weight wheel wind window wing winner wire
witness wonder wood word work worker world writer yard year youth zone""".split()

RARE = """algorithm antenna archaeology asteroid astronomy auction avalanche bacteria bagpipe bankruptcy barometer blockchain
cathedral chemistry cholesterol chromosome compass constitution corporation cryptography dentist derivative diplomat
dinosaur earthquake eclipse electron embassy enzyme equation espresso evolution feminism fertiliser folklore fossil galaxy
gearbox genetics geometry glacier gravity helicopter heritage hypothesis inflation inheritance insulation invoice
jurisdiction keyboard kilowatt laser lawsuit legislation lighthouse linguistics locomotive magnet mammoth marathon
mathematics membrane meteorite microscope microwave monarchy mortgage mythology neutron nitrogen nutrition opera orchestra
ownership parliament parachute pharmacy philosopher plumbing politician porcelain psychology pyramid quantum radiation
recession refrigerator renaissance reptile republic rhythm sculpture semiconductor shareholder skeleton smartphone spaceship
spreadsheet statistics submarine subscription symphony tariff telescope thermostat thunder transmission treasury tribunal
turbine unicorn vaccine vampire velocity vitamin volcano warehouse wizard zeppelin""".split()

VERBS = """accept achieve add admit adopt advertise agree allow analyse announce appear apply approve arrange assess attach
attack attend avoid become begin believe book borrow break bring build burn buy calculate call cancel carry catch change
check choose claim clean close collect combine compare complain complete confirm connect consider contain continue convert
cook copy count create cross cut decide decorate defend deliver describe design destroy develop discover discuss divide
download draw drive earn edit encourage end enjoy enter establish examine exchange expand expect explain explore extend fight
fill find finish fix fly fold follow forget forgive form gather generate give grow guess handle hang happen help hide hire
hold hope identify ignore imagine improve include increase inspect install introduce invent invest invite join judge jump
keep kick know launch lead learn leave lend lift like limit list listen live load look lose maintain make manage mark
measure meet mention move name need notice obtain offer open order organise own pack paint park pass pay perform plan plant
play point possess pour practise prepare present press prevent print produce promise protect prove provide publish pull push
put reach read realise receive recognise recommend record reduce refer reflect refuse remember remove renew repair repeat
replace reply report represent request rescue return reveal review ride run save say search seem sell send separate serve
share shout show sign sing sit sleep solve speak spell spend stand start stay steal stop store study succeed suffer suggest
supply support suppose survive take talk taste teach tell test think throw touch train transfer translate travel treat try
turn understand update upgrade use visit wait wake walk want warn wash watch wear win wonder worry wrap write""".split()

OTHER = """about above across after again against almost alone along already also although always among another anybody
anyone anything anyway anywhere around away back because before behind being below beside best better between beyond both
but by careful certain certainly clearly close common complete completely could daily dear deep different difficult direct
directly during each early easily easy either else enough entire especially even ever every everybody everyone everything
everywhere exactly except extended fair false famous far fast few final finally fine first five foreign forever formal
former forward free fresh from full fully further general generally global good great half happily hard hardly has have
having heavy her here herself high him himself his how however huge hundred ideal if immediately important impossible in
indeed instead interested interesting into is it its itself just kindly large last late later least legal less likely little
local long loud low main major many maybe me mental military million minor missing modern more most mostly much must my
myself narrow national natural near nearly necessary negative neither never next nobody none normal normally not nothing now
obvious obviously of off often on once one only onto opposite or ordinary other our ourselves out outside over own perfect
perhaps personal physical please political poor popular positive possible possibly powerful pretty previous private probably
proper public quick quickly quietly quite rare rather raw ready real really recent recently regular rich right rough round
sad safe same second secretly seldom separate serious seven several shall short should similar since single slow slowly
smooth so social some somebody someone something sometimes somewhere soon sorry special square still straight such sudden
suddenly sure sweet than that their them themselves then there therefore these they thick thin third this those though
thousand through today together tomorrow tonight too total towards true twice typical under unless until unusual up upon
upstairs useful usual usually valuable various very wet what whatever when whenever where wherever whether which while white
who whole whom whose why wide wild wise with within without wonderful would wrong yes yesterday yet you young your
yourself""".split()

# Words spelled with a vowel but spoken with a consonant, and the reverse.
_A_BEFORE = ("uni", "use", "usu", "one", "once", "euro", "ukulele", "utensil")
_AN_BEFORE = ("hour", "honest", "honour", "heir")
_IRREGULAR = {"fish": "fish", "goldfish": "goldfish", "sheep": "sheep", "mouse": "mice", "goose": "geese", "child": "children",
              "person": "people", "man": "men", "woman": "women", "foot": "feet", "tooth": "teeth", "leaf": "leaves",
              "knife": "knives", "wolf": "wolves", "loaf": "loaves", "shelf": "shelves", "scarf": "scarves",
              "deer": "deer", "potato": "potatoes", "tomato": "tomatoes", "life": "lives"}  # fmt: skip

_MASS = frozenset("""advice attention blood cash climate comfort content control cream culture damage danger debt duty earth economy
education electricity energy equipment experience faith fashion finance fire freedom fuel furniture future gas glass gold grass ground growth
happiness health heat history importance income industry information insurance interest internet iron justice knowledge law leather
literature luck lunch mail material maths matter medicine money mood music nature news oil pain paper peace physics plastic pleasure poetry
pollution poverty power practice pressure progress protection quality rain research respect responsibility rice safety sand science security
silence silver skin sky society software soil space speed staff stairs steel storage strength stress stuff sugar support teeth technology
tennis traffic transport trouble trust truth violence wealth weather wind wood work youth people politics
archaeology astronomy bacteria chemistry cholesterol cryptography evolution feminism fertiliser folklore genetics geometry gravity
heritage inflation insulation jurisdiction legislation linguistics mathematics mythology nitrogen nutrition plumbing porcelain psychology radiation
statistics thunder philosophy literature""".split())  # fmt: skip


def article(phrase: str) -> str:
    """`phrase` with the indefinite article it needs: "a cat", "an old cat", "an hour", "some sugar"."""
    word = phrase.lower()
    if word.rsplit(" ", 1)[-1] in _MASS:
        return f"some {phrase}"
    vowel = word[0] in "aeiou" and not word.startswith(_A_BEFORE)
    return f"an {phrase}" if vowel or word.startswith(_AN_BEFORE) else f"a {phrase}"


def plural(noun: str) -> str:
    """The plural of a noun; a noun that cannot be counted stays as it is."""
    if noun in _MASS:
        return noun
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def capital(text: str) -> str:
    """`text` with its first letter as a capital and the rest untouched."""
    return text[:1].upper() + text[1:]


def one(rng: Random, *choices: str) -> str:
    """One of the phrases given, each as likely as the others."""
    return rng.choice(choices)


def turn(user: str, answer: str) -> list[Message]:
    """One question and its answer as messages."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
