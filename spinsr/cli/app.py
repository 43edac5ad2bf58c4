"""`spinsr app`: a page in the browser that does what `spinsr upscale` does."""

import argparse
import ipaddress

from spinsr.cli import arguments, network

EXAMPLE = """\
examples:
  spinsr app --open
  spinsr app --port 8000 --device cuda --max-pixels 50000000

Needs Gradio: pip install 'spinsr[app]'. Ctrl-C ends it, and deletes what was uploaded and made.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        'app',
        help='a page in the browser to upscale images',
        description='Serves a page that upscales images with the networks that come with spinsr, and shows the '
        'difference and the superpixels. Nothing leaves the machine, and nothing is kept.',
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--host', default='127.0.0.1', help='address to listen on (default: %(default)s, this machine only)'
    )
    parser.add_argument('--port', metavar='N', type=_port, default=7860, help='default: %(default)s')
    parser.add_argument('--open', action='store_true', help='open the page in the browser')
    parser.add_argument(
        '--max-mb', metavar='N', type=arguments.positive, default=50, help='largest file, in MB (default: %(default)s)'
    )
    parser.add_argument(
        '--max-pixels',
        metavar='N',
        type=arguments.positive,
        default=24_000_000,
        help='refuse images with more pixels (default: %(default)s)',
    )
    parser.add_argument(
        '--device',
        metavar='DEVICE',
        default='auto',
        help='cpu, cuda, cuda:1, mps, xpu; auto (the default): the first available of cuda, mps and xpu, else cpu',
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from spinsr.app import server

    # Before torch is imported, so that these errors show at once.
    server.check_gradio()
    server.check_address(args.host, args.port)

    def started(url: str) -> None:
        print(f'{url} (Ctrl-C ends it)', flush=True)
        if not _is_local(args.host):
            print('The page has no password: everyone who reaches this address can use it.', flush=True)

    server.serve(
        args.host,
        args.port,
        device=network.device(args.device),
        max_bytes=args.max_mb * 2**20,
        max_pixels=args.max_pixels,
        open_browser=args.open,
        started=started,
    )
    return 0


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f'must be an integer from 1 to 65535, got {text!r}')
    return int(text)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'
