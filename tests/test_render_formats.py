"""Formats beside glTF and OBJ: 3MF with its colours, and the extras FBX and USDZ."""

from __future__ import annotations

import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from mesh_files import TWO_HALVES

from ddclip_cli.errors import UserError
from ddclip_cli.render.load import load_scene
from ddclip_cli.render.scene import Alpha, Wrap
from ddclip_cli.render.tone import to_linear
from ddclip_cli.sample.glb import png_bytes

# ---- 3MF

HEAD = """<?xml version="1.0"?><model unit="millimeter"
 xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02"
 xmlns:m="http://schemas.microsoft.com/3dmanufacturing/material/2015/02"
 xmlns:p="http://schemas.microsoft.com/3dmanufacturing/production/2015/06">"""
VERTICES = """<vertices><vertex x="0" y="0" z="0"/><vertex x="1" y="0" z="0"/><vertex x="0" y="0" z="2"/>
<vertex x="0" y="1" z="0"/></vertices>"""


def threemf(folder: Path, resources: str, build: str = '<item objectid="1"/>', **others: str) -> Path:
    path = folder / "it.3mf"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("3D/3dmodel.model", f"{HEAD}<resources>{resources}</resources><build>{build}</build></model>")
        for name, text in others.items():
            archive.writestr(f"3D/{name}.model", f"{HEAD}<resources>{text}</resources><build/></model>")
    return path


def thing(triangles: str, **attributes: str) -> str:
    more = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f"<object{more}><mesh>{VERTICES}<triangles>{triangles}</triangles></mesh></object>"


def test_colours_of_a_3mf_by_object_by_triangle_and_by_corner(tmp_path):
    resources = """<basematerials id="5"><base name="a" displaycolor="#FF8000"/>
    <base name="b" displaycolor="#0000FFFF"/></basematerials>
    <m:colorgroup id="6"><m:color color="#00FF00"/><m:color color="#FF0000"/></m:colorgroup>"""
    triangles = """<triangle v1="0" v2="1" v3="2"/><triangle v1="0" v2="1" v3="3" pid="5" p1="1"/>
    <triangle v1="0" v2="2" v3="3" pid="6" p1="0" p2="1" p3="1"/>"""
    scene = load_scene(threemf(tmp_path, resources + thing(triangles, id="1", pid="5", pindex="0")))
    colours = scene.colours[scene.faces]
    assert np.allclose(colours[0], [*to_linear(np.array([255, 128, 0]) / 255), 1])
    assert np.allclose(colours[1], [0, 0, 1, 1])
    assert np.allclose(colours[2], [[0, 1, 0, 1], [1, 0, 0, 1], [1, 0, 0, 1]])


def test_components_of_a_3mf_have_the_colour_of_the_whole_where_they_have_none(tmp_path):
    colours = '<m:colorgroup id="6"><m:color color="#00FF00"/></m:colorgroup>'
    whole = '<object id="2" pid="6" pindex="0"><components><component objectid="1"/></components></object>'
    resources = colours + thing('<triangle v1="0" v2="1" v3="2"/>', id="1") + whole
    (material,) = load_scene(threemf(tmp_path, resources, '<item objectid="2"/>')).materials
    assert material.factor == (0, 1, 0, 1)


def test_objects_of_a_3mf_stand_where_their_items_and_components_say(tmp_path):
    component = '<component objectid="1" transform="0 1 0 -1 0 0 0 0 1 10 0 0"/>'
    whole = f'<object id="2"><components>{component}</components></object>'
    resources = thing('<triangle v1="0" v2="1" v3="2"/>', id="1") + whole
    scene = load_scene(threemf(tmp_path, resources, '<item objectid="2" transform="2 0 0 0 2 0 0 0 2 0 0 5"/>'))
    corners = scene.vertices[scene.faces[0]]
    turned = np.array([[20, 0, 5], [20, 2, 5], [20, 0, 9]])  # a quarter turn, moved, doubled, lifted; z stays up
    expected = (turned - (turned.min(0) + turned.max(0)) / 2) / 4
    assert np.allclose(corners, expected, atol=1e-6)


def test_a_3mf_may_consist_of_several_models(tmp_path):
    part = thing('<triangle v1="0" v2="1" v3="2"/>', id="7")
    path = threemf(tmp_path, "", '<item objectid="7" p:path="/3D/part.model"/>', part=part)
    assert len(load_scene(path).faces) == 1


@pytest.mark.parametrize(
    ("resources", "why"),
    [
        ('<object id="1"><components><component objectid="1"/></components></object>', "hold each other"),
        ("", "cannot be read"),
        (thing('<triangle v1="0" v2="1" v3="9"/>', id="1"), "not there"),
        (thing('<triangle v1="0" v2="1" v3="x"/>', id="1"), "cannot be read"),
        (thing("", id="1"), "holds no triangles"),
    ],
)
def test_a_broken_3mf_is_refused(tmp_path, resources, why):
    with pytest.raises(UserError, match=why):
        load_scene(threemf(tmp_path, resources))


def test_a_3mf_of_many_copies_of_copies_is_refused(tmp_path):
    levels = ""
    for number in range(2, 12):
        copies = f'<component objectid="{number - 1}"/>' * 8
        levels += f'<object id="{number}"><components>{copies}</components></object>'
    resources = thing('<triangle v1="0" v2="1" v3="2"/>', id="1") + levels
    with pytest.raises(UserError, match="triangles, more than"):
        load_scene(threemf(tmp_path, resources, '<item objectid="11"/>'))


def test_entities_of_a_3mf_are_not_followed(tmp_path):
    (tmp_path / "secret").write_text("1")
    path = tmp_path / "it.3mf"
    entity = f'<!DOCTYPE x [<!ENTITY e SYSTEM "file://{tmp_path}/secret">]>'
    triangle = '<triangle v1="0" v2="&e;" v3="2"/>'
    with zipfile.ZipFile(path, "w") as archive:
        text = f'{HEAD}<resources>{thing(triangle, id="1")}</resources><build><item objectid="1"/></build></model>'
        archive.writestr("3D/3dmodel.model", text.replace("?>", f"?>{entity}", 1))
    with pytest.raises(UserError, match="cannot be read"):
        load_scene(path)


# ---- extras


@pytest.mark.parametrize(("suffix", "package", "extra"), [(".fbx", "assimp_py", "fbx"), (".usdz", "pxr", "usd")])
def test_without_its_extra_a_format_is_one_clear_sentence(tmp_path, monkeypatch, suffix, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / f"it{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("it.usda", "")
    with pytest.raises(UserError) as caught:
        load_scene(path)
    assert str(caught.value) == f"{path}: {suffix} files need a package more: pip install 'ddclip[{extra}]'"


FBX = (Path(__file__).parent / "data" / "quad.fbx").read_text()
needs_assimp = pytest.mark.skipif(find_spec("assimp_py") is None, reason="the extra fbx is not installed")
needs_usd = pytest.mark.skipif(find_spec("pxr") is None, reason="the extra usd is not installed")
CORNERS = [[-0.25, 0, -0.5], [0.25, 0, -0.5], [0.25, 0, 0.5], [-0.25, 0, 0.5]]  # of a quad 1 wide and 2 high, z up


@needs_assimp
def test_an_fbx_has_its_place_its_texture_and_its_up(tmp_path, capsys):
    path = tmp_path / "it.fbx"
    path.write_text(FBX)
    plain = load_scene(path)
    assert np.allclose(plain.vertices, CORNERS, atol=1e-6)
    assert np.allclose(plain.materials[0].factor, [0.5, 0.25, 0, 1])
    assert "'halves.png' is missing" in capsys.readouterr().err
    (tmp_path / "halves.png").write_bytes(png_bytes(TWO_HALVES))
    scene = load_scene(path)
    assert np.array_equal(scene.materials[0].texture.picture, TWO_HALVES)
    assert np.allclose(scene.uv, [[0, 0], [1, 0], [1, 1], [0, 1]])
    assert len(scene.faces) == 2


@needs_assimp
@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "http://127.0.0.1:9/wood.png"])
def test_an_fbx_may_not_reach_out_of_its_folder(tmp_path, name):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret.png").write_bytes(png_bytes(TWO_HALVES))
    (inner / "it.fbx").write_text(FBX.replace("halves.png", name))
    with pytest.raises(UserError, match=r"outside its folder|an address on the network"):
        load_scene(inner / "it.fbx")


@needs_assimp
@pytest.mark.parametrize(
    "data", [b"butter, bread", FBX.encode()[:900], b"Kaydara FBX Binary  \0\x1a\0" + b"\xff" * 300]
)
def test_a_broken_fbx_is_refused(tmp_path, data):
    path = tmp_path / "it.fbx"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"cannot be read as a \.fbx mesh") as caught:
        load_scene(path)
    assert "\n" not in str(caught.value)


USDA = """#usda 1.0
( upAxis = "Z" )
def Xform "Root"
{
    double3 xformOp:translate = (5, 0, 0)
    uniform token[] xformOpOrder = ["xformOp:translate"]
    def Mesh "quad" (prepend apiSchemas = ["MaterialBindingAPI"])
    {
        point3f[] points = [(0,0,0), (1,0,0), (1,0,2), (0,0,2)]
        int[] faceVertexCounts = [4]
        int[] faceVertexIndices = [0, 1, 2, 3]
        texCoord2f[] primvars:uvs = [(0,0), (1,0), (1,1), (0,1)] (interpolation = "faceVarying")
        color3f[] primvars:displayColor = [(0.25, 0.5, 1)] (interpolation = "uniform")
        BINDING
    }
    def Mesh "hidden"
    {
        token visibility = "invisible"
        point3f[] points = [(0,0,0), (9,0,0), (9,9,0)]
        int[] faceVertexCounts = [3]
        int[] faceVertexIndices = [0, 1, 2]
    }
    def Material "Paint"
    {
        token outputs:surface.connect = </Root/Paint/Surface.outputs:surface>
        def Shader "Surface"
        {
            uniform token info:id = "UsdPreviewSurface"
            color3f inputs:diffuseColor.connect = </Root/Paint/Picture.outputs:rgb>
            color3f inputs:emissiveColor = (0.5, 0, 0)
            float inputs:opacity = 0.5
            token outputs:surface
        }
        def Shader "Picture"
        {
            uniform token info:id = "UsdUVTexture"
            asset inputs:file = @textures/halves.png@
            token inputs:wrapS = "mirror"
            float2 inputs:st.connect = </Root/Paint/Where.outputs:result>
            float3 outputs:rgb
        }
        def Shader "Where"
        {
            uniform token info:id = "UsdPrimvarReader_float2"
            string inputs:varname = "uvs"
            float2 outputs:result
        }
    }
}
"""


def usdz(folder: Path, text: str, *, picture: bool = True) -> Path:
    path = folder / "it.usdz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("it.usda", text)
        if picture:
            archive.writestr("textures/halves.png", png_bytes(TWO_HALVES))
    return path


@needs_usd
def test_a_usdz_has_its_place_its_material_and_its_up(tmp_path, capsys):
    text = USDA.replace("BINDING", "rel material:binding = </Root/Paint>")
    scene = load_scene(usdz(tmp_path, text))
    assert np.allclose(scene.vertices, CORNERS, atol=1e-6)
    assert np.allclose(scene.uv, [[0, 0], [1, 0], [1, 1], [0, 1]])
    (material,) = scene.materials
    assert np.array_equal(material.texture.picture, TWO_HALVES)
    assert material.texture.wrap == (Wrap.MIRROR, Wrap.REPEAT)
    assert (material.factor, material.emissive, material.alpha) == ((1, 1, 1, 0.5), (0.5, 0, 0), Alpha.BLEND)
    assert "warning" not in capsys.readouterr().err
    load_scene(usdz(tmp_path, text, picture=False))
    assert "'textures/halves.png' is missing" in capsys.readouterr().err


@needs_usd
def test_a_usdz_without_material_has_its_display_colours(tmp_path):
    scene = load_scene(usdz(tmp_path, USDA.replace("BINDING", "").replace('upAxis = "Z"', 'upAxis = "Y"')))
    assert np.allclose(scene.colours, [0.25, 0.5, 1, 1])
    assert np.ptp(scene.vertices, axis=0).argmax() == 1  # lies down: what was z is no longer up


@needs_usd
def test_a_usdz_may_not_reach_out_of_itself(tmp_path):
    (tmp_path / "other.usda").write_text(USDA.replace("BINDING", ""))
    referring = f'def Xform "Root" (references = @{tmp_path}/other.usda@</Root>)'
    outside = USDA.replace("BINDING", "").replace('def Xform "Root"', referring)
    with pytest.raises(UserError, match="outside itself"):
        load_scene(usdz(tmp_path, outside))


@needs_usd
@pytest.mark.parametrize("text", ["#usda 1.0\n", "butter, bread", USDA.replace("[0, 1, 2, 3]", "[0, 1, 2, 7]")])
def test_a_broken_usdz_is_refused(tmp_path, text):
    with pytest.raises(UserError) as caught:
        load_scene(usdz(tmp_path, text.replace("BINDING", "")))
    assert "\n" not in str(caught.value)
