"""Networks for other programs: ONNX and spandrel."""

from spinsr.export.onnx import export_file, to_onnx

__all__ = ['export_file', 'to_onnx']
