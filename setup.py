"""The packages; all else about the distribution is in pyproject.toml, which cannot add one folder to those it finds."""

from setuptools import find_packages, setup

setup(
    # options/ is shipped in the wheel as spinsr.options.
    packages=[*find_packages(include=['spinsr', 'spinsr.*']), 'spinsr.options'],
    package_dir={'spinsr.options': 'options'},
)
