"""Packaging of spinsr; the options/ folder travels in the wheel as the package spinsr.options."""

import re
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
version = re.search(r"__version__ = '(.+)'", (root / 'spinsr' / '_version.py').read_text(encoding='utf-8')).group(1)

setup(
    name='spinsr',
    version=version,
    description='SPIN, SAN and RCAN for BasicSR: exact, sparse and portable image super-resolution',
    long_description=(root / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='The spinsr authors',
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Image Processing',
    ],
    # The source of BasicSR 1.4.2 does not build on Python 3.13.
    python_requires='>=3.10,<3.13',
    packages=[*find_packages(include=['spinsr', 'spinsr.*']), 'spinsr.options'],
    package_dir={'spinsr.options': 'options'},
    package_data={
        'spinsr.options': ['*.yml', '*/*.yml'],
        'spinsr.report': ['page.css', 'page.html', 'page.js'],
        'spinsr.weights': ['LICENSE', 'README.md', '*.safetensors'],
    },
    install_requires=[
        'basicsr>=1.4.2',
        'jinja2',
        'lmdb',
        'numpy',
        'opencv-python',
        'pillow',
        'psutil',
        'pyyaml',
        'safetensors',
        'scikit-image',
        'simplejpeg>=1.7',
        'tifffile',
        'torch>=2.6',
        'torchvision',
        'tqdm',
    ],
    extras_require={
        'dev': [
            'adjustText',
            'build',
            'import-linter',
            'matplotlib',
            'onnx',
            'onnxruntime',
            'onnxscript',
            'pytest>=8',
            'pytest-xdist',
            'ruff',
            'selenium',
            'spandrel',
        ],
        'docs': ['mkdocs-material', 'mkdocstrings[python]'],
        'export': ['onnx', 'onnxruntime', 'onnxscript'],
        'metrics': ['pyiqa'],
        'plot': ['adjustText', 'matplotlib'],
        'spandrel': ['spandrel'],
    },
    entry_points={'console_scripts': ['spinsr=spinsr.cli:main']},
    zip_safe=False,
)
