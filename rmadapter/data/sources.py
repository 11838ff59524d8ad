"""Where each of the field's data sets comes from: torchvision's downloader, or files to be fetched by hand.

Links are those of CoOp's DATASETS.md and of the data sets' own pages; sizes are of the archives.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DRIVE = "https://drive.google.com/file/d/{}/view"


@dataclass(frozen=True)
class RemoteFile:
    """One file to fetch: where it is, what it is called, how large it is and what becomes of it.

    ``drive`` is an identifier on Google Drive, in place of ``url``. ``unpack`` is where an archive is unpacked, below
    the data root ("" is the root itself), and ``makes`` the folder that it makes there, ``renamed`` to another name
    where the field has another; without ``makes`` its content goes there, and ``unpack`` says after a comma which.
    ``inner`` is the archive that is meant where one lies in the other. Without ``unpack`` the file itself goes to
    ``folder``, below the data root.
    """

    name: str
    size: str
    url: str | None = None
    drive: str | None = None
    unpack: str | None = None
    makes: str | None = None
    renamed: str | None = None
    inner: str | None = None
    folder: str | None = None

    def step(self) -> str:
        """The sentence that a user follows."""
        if self.folder is not None:
            where = f"put it into {self.folder}/"
        elif self.makes is None:
            where = f"unpack its content into {self.unpack}"
        else:
            what = f"{self.inner}, which is in it," if self.inner else "it"
            where = f"unpack {what} in {self.unpack or 'the data root'} (it makes {self.makes}"
            where += f", to be renamed to {self.renamed})" if self.renamed else ")"
        return f"fetch {self.name} ({self.size}) from {self.url or DRIVE.format(self.drive)} and {where}"

    @property
    def unpacked(self) -> str:
        """The folder below the data root that is there when the archive has been unpacked."""
        if self.makes is None:
            return (self.unpack or "").partition(",")[0]
        return "/".join(part for part in (self.unpack, self.renamed or self.makes) if part)


@dataclass(frozen=True)
class Source:
    """How to get one data set.

    Attributes:
        gigabytes: of the archives; as much again is needed for the images while they are unpacked.
        torchvision: the class of ``torchvision.datasets`` that downloads the same images; None for none that works.
        arguments: for that class, besides root and download.
        archives: what that class fetches, for where it cannot.
        files: what is fetched by hand: everything, or what torchvision does not bring.
        remarks: further sentences.
    """

    gigabytes: float
    torchvision: str | None = None
    arguments: dict[str, str] = field(default_factory=dict)
    archives: tuple[RemoteFile, ...] = ()
    files: tuple[RemoteFile, ...] = ()
    remarks: tuple[str, ...] = ()


def _split(name: str, drive: str, folder: str) -> RemoteFile:
    return RemoteFile(f"split_zhou_{name}.json", "under 10 MB", drive=drive, folder=folder)


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
_CLASS_NAMES_DRIVE = "1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF"
_VARIANT_NAMES = "class names are those of imagenet/classnames.txt: have imagenet/ beside it, or copy the file into it"

SOURCES: dict[str, Source] = {
    "imagenet": Source(
        150,
        files=(
            RemoteFile(
                "ILSVRC2012_img_train.tar",
                "138 GB",
                "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
                unpack="imagenet/images/train, one folder a wnid (n01440764, ...)",
            ),
            RemoteFile(
                "ILSVRC2012_img_val.tar",
                "6.3 GB",
                "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
                unpack="imagenet/images/val, sorted into one folder a wnid by ILSVRC2012_devkit_t12.tar.gz",
            ),
            RemoteFile("classnames.txt", "30 kB", drive=_CLASS_NAMES_DRIVE, folder="imagenet"),
        ),
        remarks=("the images are given out to registered researchers alone",),
    ),
    "caltech101": Source(
        0.14,
        "Caltech101",
        archives=(
            RemoteFile(
                "caltech-101.zip",
                "137 MB",
                "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
                unpack="caltech-101",
                makes="101_ObjectCategories",
                inner="101_ObjectCategories.tar.gz",
            ),
        ),
        files=(_split("Caltech101", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN", "caltech-101"),),
    ),
    "oxford_pets": Source(
        0.81,
        "OxfordIIITPet",
        archives=(
            RemoteFile(
                "images.tar.gz",
                "792 MB",
                f"{_OXFORD}/pets/data/images.tar.gz",
                unpack="oxford_pets",
                makes="images",
            ),
            RemoteFile(
                "annotations.tar.gz",
                "19 MB",
                f"{_OXFORD}/pets/data/annotations.tar.gz",
                unpack="oxford_pets",
                makes="annotations",
            ),
        ),
        files=(_split("OxfordPets", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs", "oxford_pets"),),
    ),
    "stanford_cars": Source(
        1.96,
        files=(
            RemoteFile(
                "cars_train.tgz",
                "934 MB",
                "http://ai.stanford.edu/~jkrause/car196/cars_train.tgz",
                unpack="stanford_cars",
                makes="cars_train",
            ),
            RemoteFile(
                "cars_test.tgz",
                "977 MB",
                "http://ai.stanford.edu/~jkrause/car196/cars_test.tgz",
                unpack="stanford_cars",
                makes="cars_test",
            ),
            RemoteFile(
                "car_devkit.tgz",
                "1 MB",
                "https://ai.stanford.edu/~jkrause/cars/car_devkit.tgz",
                unpack="stanford_cars",
                makes="devkit",
            ),
            RemoteFile(
                "cars_test_annos_withlabels.mat",
                "1 MB",
                "http://ai.stanford.edu/~jkrause/car196/cars_test_annos_withlabels.mat",
                folder="stanford_cars",
            ),
            _split("StanfordCars", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT", "stanford_cars"),
        ),
        remarks=(
            "these addresses have been down for long times; with the split file the two .mat files are not needed",
        ),
    ),
    "oxford_flowers": Source(
        0.35,
        "Flowers102",
        archives=(
            RemoteFile(
                "102flowers.tgz",
                "345 MB",
                f"{_OXFORD}/flowers/102/102flowers.tgz",
                unpack="oxford_flowers",
                makes="jpg",
            ),
            RemoteFile("imagelabels.mat", "1 kB", f"{_OXFORD}/flowers/102/imagelabels.mat", folder="oxford_flowers"),
        ),
        files=(
            _split("OxfordFlowers", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT", "oxford_flowers"),
            RemoteFile("cat_to_name.json", "3 kB", drive="1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0", folder="oxford_flowers"),
        ),
    ),
    "food101": Source(
        5.0,
        "Food101",
        archives=(
            RemoteFile(
                "food-101.tar.gz",
                "5.0 GB",
                "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                unpack="",
                makes="food-101",
            ),
        ),
        files=(_split("Food101", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl", "food-101"),),
    ),
    "fgvc_aircraft": Source(
        2.75,
        "FGVCAircraft",
        archives=(
            RemoteFile(
                "fgvc-aircraft-2013b.tar.gz",
                "2.75 GB",
                f"{_OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                unpack="fgvc_aircraft, what is in its folder data (images/, variants.txt, ...)",
            ),
        ),
    ),
    "sun397": Source(
        39.0,
        "SUN397",
        archives=(
            RemoteFile(
                "SUN397.tar.gz",
                "39 GB",
                "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
                unpack="sun397",
                makes="SUN397",
            ),
        ),
        files=(_split("SUN397", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq", "sun397"),),
    ),
    "dtd": Source(
        0.63,
        "DTD",
        archives=(
            RemoteFile(
                "dtd-r1.0.1.tar.gz",
                "0.63 GB",
                f"{_OXFORD}/dtd/download/dtd-r1.0.1.tar.gz",
                unpack="",
                makes="dtd",
            ),
        ),
        files=(_split("DescribableTextures", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x", "dtd"),),
    ),
    "eurosat": Source(
        0.1,
        "EuroSAT",
        archives=(
            RemoteFile(
                "EuroSAT.zip",
                "94 MB",
                "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/"
                "EuroSAT.zip",
                unpack="eurosat",
                makes="2750",
            ),
        ),
        files=(_split("EuroSAT", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o", "eurosat"),),
    ),
    "ucf101": Source(
        0.4,
        files=(
            RemoteFile(
                "UCF-101-midframes.zip",
                "about 0.4 GB",
                drive="10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O",
                unpack="ucf101",
                makes="UCF-101-midframes",
            ),
            _split("UCF101", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y", "ucf101"),
        ),
        remarks=("the images are the middle frame of each video",),
    ),
    "imagenetv2": Source(
        1.3,
        files=(
            RemoteFile(
                "imagenetv2-matched-frequency.tar.gz",
                "1.3 GB",
                "https://s3-us-west-2.amazonaws.com/imagenetv2public/imagenetv2-matched-frequency.tar.gz",
                unpack="imagenetv2",
                makes="imagenetv2-matched-frequency-format-val",
            ),
        ),
        remarks=(_VARIANT_NAMES,),
    ),
    "imagenet_sketch": Source(
        7.6,
        files=(
            RemoteFile(
                "ImageNet-Sketch.zip",
                "7.6 GB",
                "https://github.com/HaohanWang/ImageNet-Sketch",
                unpack="imagenet-sketch",
                makes="sketch",
                renamed="images",
            ),
        ),
        remarks=(_VARIANT_NAMES,),
    ),
    "imagenet_a": Source(
        0.7,
        files=(
            RemoteFile(
                "imagenet-a.tar",
                "0.7 GB",
                "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
                unpack="imagenet-adversarial",
                makes="imagenet-a",
            ),
        ),
        remarks=(_VARIANT_NAMES,),
    ),
    "imagenet_r": Source(
        2.2,
        files=(
            RemoteFile(
                "imagenet-r.tar",
                "2.2 GB",
                "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
                unpack="imagenet-rendition",
                makes="imagenet-r",
            ),
        ),
        remarks=(_VARIANT_NAMES,),
    ),
}
